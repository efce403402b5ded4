#include "../../cells/lstm.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::Lstm, Tier::kCluster)
