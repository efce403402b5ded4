#include "../../cells/rnn.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::RnnRelu, Tier::kCta)
