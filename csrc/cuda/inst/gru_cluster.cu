#include "../../cells/gru.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::Gru, Tier::kCluster)
