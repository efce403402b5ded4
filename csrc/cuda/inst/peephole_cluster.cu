#include "../../cells/peephole.h"
#include "../resident_cluster.cuh"

FASTRNN_RESIDENT(fastrnn::Peephole, Tier::kCluster)
