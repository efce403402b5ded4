#include "../../cells/lstm.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::Lstm, Tier::kGrid)
