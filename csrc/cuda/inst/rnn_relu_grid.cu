#include "../../cells/rnn.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::RnnRelu, Tier::kGrid)
