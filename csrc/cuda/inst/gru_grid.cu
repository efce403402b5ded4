#include "../../cells/gru.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::Gru, Tier::kGrid)
