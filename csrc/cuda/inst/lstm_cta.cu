#include "../../cells/lstm.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::Lstm, Tier::kCta)
