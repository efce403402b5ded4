#include "../../cells/cifg.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::Cifg)
