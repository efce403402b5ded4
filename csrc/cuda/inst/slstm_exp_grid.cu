#include "../../cells/slstm.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::SlstmExp, Tier::kGrid)
