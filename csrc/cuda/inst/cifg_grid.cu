#include "../../cells/cifg.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::Cifg, Tier::kGrid)
