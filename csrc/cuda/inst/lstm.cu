#include "../../cells/lstm.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::Lstm)
