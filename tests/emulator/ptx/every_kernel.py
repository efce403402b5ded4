"""The emulator's tests once more, with every launch run from the PTX of sm_75, sm_80 and sm_90: `make ptx`.

Not among the ordinary tests, because it takes long; tests/emulator/test_ptx.py has a part of it. A process runs all
tests of an architecture, for the last of them asks what ran.
"""

import pytest

from emulator import build, test_emulator, test_resident, test_states, test_wide_c
from emulator.cases import BY_NAME, Layer
from emulator.oracle import MODES
from emulator.ptx import compiled
from emulator.ptx.executed import Executed, exists

pytestmark = [
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with"),
    pytest.mark.skipif(compiled.nvcc() is None, reason="nvcc was not found"),
]

ARCHITECTURES = [pytest.param(architecture, id=f"sm_{architecture}") for architecture in compiled.ARCHITECTURES]
RAN = {architecture: set() for architecture in compiled.ARCHITECTURES}


def form_of(values):
    """What a test prescribes, by its parameters, and the precision."""
    form = values.get("kernel") or values.get("wish") or BY_NAME.get(values.get("form"), {})
    return form, values.get("precision", "bfloat16")


@pytest.fixture(params=ARCHITECTURES)
def cuda(request, _emulated):
    form, precision = form_of(request.node.callspec.params)
    if not exists(request.param, form, precision):
        pytest.skip(f"sm_{request.param} has no such kernel")
    executed = Executed(_emulated, request.param)
    yield executed
    RAN[request.param] |= set(executed.ran)
    _emulated.follow_plan()
    _emulated.set_device()


test_kernels = test_emulator.test_every_kernel_against_the_formulas
test_kernels_with_lengths = test_emulator.test_every_kernel_with_lengths_resets_and_one_direction
test_kernels_with_nan = test_emulator.test_nan_and_infinities_with_every_kernel
test_many_weights = test_resident.test_weights_beyond_the_registers
test_long_sequence = test_resident.test_a_sequence_longer_than_one_launch_can_carry_offsets_of


@pytest.mark.parametrize("cell, kernel, precision", test_emulator.CASES)
def test_step_kernels_that_expect_no_alignment(cuda, cell, kernel, precision):
    """Four gates of float32 and float64 fill sixteen bytes: no call of torch's tensors gets these in backward."""
    cuda.override_plan(**kernel)
    cuda.unaligned = True
    Layer(cell, precision, (2, 9, 3, 40), 2, packed=True).check(cuda)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("wish", [{"tier": "cluster", "rows": 32}, {"tier": "grid", "rows": 32}])
@pytest.mark.parametrize("cell", range(len(MODES)))
def test_weights_of_wide_tiles_beyond_the_registers(cuda, cell, wish, precision):
    """With seed 0 an SLSTM in tf32 exceeds the budget, emulated too."""
    cuda.override_tier(**wish)
    Layer(cell, precision, (2, 33, 2, 150), seed=1).check(cuda)


test_wide_parts = test_wide_c.test_a_sequence_in_two_calls_has_the_bits_of_one
test_wide_gradients = test_wide_c.test_the_gradients_are_those_of_the_narrow_call
test_states_alone = test_states.test_gradients_against_the_formulas
test_rebuilt_gates = test_states.test_gates_rebuilt_by_the_products_that_forward_made_are_the_same_to_the_bit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_entry_has_run(request, record_property, architecture):
    """But those that have no body there: of clusters before sm_90, of tensor cores that Turing lacks."""
    if request.config.option.keyword not in ("", f"sm_{architecture}"):
        pytest.skip("only some tests were chosen")
    entries = {}
    for path in sorted(compiled.INST.glob("*.cu")):
        entries |= dict.fromkeys(compiled.entries(path.stem, architecture), path.stem)
    bodies = {name for name in entries if compiled.has_body(name, architecture)}
    missing, unexpected = bodies - RAN[architecture], RAN[architecture] - bodies
    assert not missing and not unexpected, f"missing: {sorted(missing)}, not expected: {sorted(unexpected)}"
    ran = there = 0
    for name in bodies:
        source = entries[name]
        mangled = compiled.entries(source, architecture)[name]
        one, all_of_it = compiled.translation(source, architecture, mangled).coverage()
        ran, there = ran + one, there + all_of_it
    text = f"{len(bodies)} of {len(entries)} entries and {ran / there:.1%} of their instructions have run"
    record_property("ptx", f"sm_{architecture}: {text}")
