#include "../../cells/peephole.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::Peephole, Tier::kCta)
