#include "../../cells/cifg.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::Cifg, Tier::kCta)
