#include "../../cells/slstm.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::SlstmExp, Tier::kCta)
