#include "../../cells/peephole.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::Peephole)
