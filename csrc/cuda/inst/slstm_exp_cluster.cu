#include "../../cells/slstm.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::SlstmExp, Tier::kCluster)
