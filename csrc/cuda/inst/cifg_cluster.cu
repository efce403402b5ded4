#include "../../cells/cifg.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::Cifg, Tier::kCluster)
