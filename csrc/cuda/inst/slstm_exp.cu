#include "../../cells/slstm.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::SlstmExp)
