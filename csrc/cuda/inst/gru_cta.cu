#include "../../cells/gru.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::Gru, Tier::kCta)
