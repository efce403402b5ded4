#include "../../cells/rnn.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::RnnRelu, Tier::kCluster)
