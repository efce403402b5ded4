#include "../../cells/rnn.h"
#include "../resident_cta.cuh"

FASTRNN_RESIDENT(fastrnn::RnnTanh, Tier::kCta)
