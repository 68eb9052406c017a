"""The reckoning of compiled programs, on texts short enough to count by hand."""

import re

import pytest

from mixtrain_jax.errors import UserError
from tools.compiled import hlo, reckoning, targets

PROGRAM = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[]}

%inside (p.0: bf16[8,4], p.1: bf16[4,16]) -> bf16[8,16] {
  %p.0 = bf16[8,4]{1,0} parameter(0)
  %p.1 = bf16[4,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], /*index=1*/f32[10]{0:T(8)(2,1)}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %values = f32[10]{0} get-tuple-element(%state), index=1
  %next = f32[10]{0} fusion(%values), kind=kLoop, calls=%inside.2
  ROOT %made = (s32[], f32[10]{0}) tuple(%number, %next)
}

%inside.2 (p.2: f32[10]) -> f32[10] {
  %p.2 = f32[10]{0} parameter(0)
  ROOT %negate = f32[10]{0} negate(%p.2)
}

%condition (state: (s32[], f32[10])) -> pred[] {
  %state.2 = (s32[], f32[10]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: bf16[8,4], y: bf16[4,16]) -> f32[10] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = bf16[4,16]{1,0} parameter(1)
  %product = bf16[8,16]{1,0} fusion(%x, %y), kind=kCustom, calls=%inside, metadata={op_name="jit(f)/transpose(jvp(Net.losses))/head/vmap()/dot_general" stack_frame_id=1}
  %start = (s32[], f32[10]{0}) tuple()
  %known = (s32[], f32[10]{0}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(f)/Net/while"}, backend_config={"known_trip_count":{"n":"3"}}
  %unknown = (s32[], f32[10]{0}) while(%known), condition=%condition, body=%body, metadata={op_name="jit(f)/Net/nms/while"}
  %values.2 = f32[10]{0} get-tuple-element(%unknown), index=1
  %conv = (bf16[2,6,6,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %copied = f32[10]{0} copy(%values.2)
}
"""  # noqa: E501
PEAK = reckoning.Peak(flops=1e12, slower=5e11, bandwidth=1e9)


@pytest.fixture
def program():
    return hlo.parse(PROGRAM)


def test_parsing(program):
    assert program.entry == "main"
    assert set(program.computations) == {"inside", "body", "inside.2", "condition", "main"}
    product = program.computations["main"][2]
    assert (product.opcode, product.operands) == ("fusion", ("x", "y"))
    assert product.shapes == (hlo.Shape("bf16", (8, 16)),)
    assert product.calls == {"calls": ("inside",)}
    assert [each.opcode for _, each in program.inside(product)] == ["parameter", "parameter", "dot"]
    known = program.computations["main"][4]
    assert known.trips == 3 and known.calls == {"condition": ("condition",), "body": ("body",)}
    assert known.shapes == (hlo.Shape("s32", ()), hlo.Shape("f32", (10,)))
    assert program.computations["main"][5].trips is None
    assert program.computations["body"][0].shapes[1] == hlo.Shape("f32", (10,))
    assert program.operand_shapes("main", known) == list(known.shapes)
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


@pytest.mark.parametrize(
    ("dtype", "sides", "size"),
    [
        ("f32", (3, 2), 24),
        ("bf16", (), 2),
        ("pred", (5,), 5),
        ("u4", (4,), 2),
        ("f8e4m3fn", (3,), 3),
        ("s64", (2,), 16),
        ("token", (), 0),
    ],
)
def test_sizes(dtype, sides, size):
    assert hlo.Shape(dtype, sides).size == size


def test_kernels_waits_and_time(program):
    found = reckoning.look(program, {"nms": 5, "": 100})
    kinds = [(kernel.kind, kernel.times, kernel.size, kernel.flop) for kernel in found.kernels]
    assert kinds == [
        ("matrix product", 1, 2 * (32 + 64 + 128), 2 * 8 * 16 * 4),
        ("fusion", 3, 80, 0),
        ("fusion", 5, 80, 0),
        ("convolution", 1, 2 * (32 + 64 + 2304), 2 * 2304 * 64 / 4),
        ("copy", 1, 80, 0),
    ]
    assert found.kernels[0].place == "Net.losses/head (gradient)"
    assert found.loops == [("jit(f)/Net/nms/while", 6)] and found.waits == 6
    assert found.kernels[1].seconds(PEAK) == pytest.approx(3 * (3e-6 + 80e-9))
    numbers = reckoning.summary(found, PEAK, images=4)
    assert numbers["runs"] == 11 and numbers["copies"] == 1 and numbers["unknown_loops"] == 1
    assert numbers["flop"] == 1024 + 73728
    assert numbers["products"] == {"matrix product in bf16": 1, "convolution in bf16": 1}
    assert numbers["images_per_second"] * numbers["seconds"] == pytest.approx(4)
    assert "the host waits 6 times" in reckoning.table(numbers)


def test_a_loop_that_is_not_named_runs_once(program):
    assert reckoning.look(program, {}).waits == 2


@pytest.mark.parametrize(
    ("target", "shapes"),
    [
        ("Forward", ("[1,5,5,7]", "[1,7,7,2]", "[7,3,3,2]")),
        ("BackwardInput", ("[1,7,7,2]", "[1,5,5,7]", "[7,3,3,2]")),
        ("BackwardFilter", ("[7,3,3,2]", "[1,7,7,2]", "[1,5,5,7]")),
    ],
)
def test_a_convolution_and_its_gradients_cost_the_same(target, shapes):
    """5x5 outputs of 7 features, of 3x3 kernels over 2."""
    result, first, second = shapes
    text = f"""ENTRY %main (x: f32[]) -> f32[] {{
  %a = f32{first} parameter(0)
  %b = f32{second} parameter(1)
  ROOT %c = f32{result} custom-call(%a, %b), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"
}}"""  # noqa: E501
    (kernel,) = reckoning.look(hlo.parse(text), {}).kernels
    assert (kernel.kind, kernel.flop, kernel.dtype) == ("convolution", 2 * 25 * 7 * 18, "f32")


def test_zeros_between_inputs_and_cublas():
    text = """ENTRY %main (x: f32[]) -> f32[] {
  %a = f32[1,4,4,8]{3,2,1,0} parameter(0)
  %b = f32[2,2,8,3]{3,2,1,0} parameter(1)
  %c = f32[1,8,8,3]{3,2,1,0} convolution(%a, %b), window={size=2x2 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f
  %d = f32[6,10]{1,0} parameter(2)
  %e = f32[6,3]{1,0} parameter(3)
  ROOT %f = (f32[10,3]{1,0}, s8[99]{0}) custom-call(%d, %e), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
}"""  # noqa: E501
    convolution, product = reckoning.look(hlo.parse(text), {}).kernels
    assert convolution.flop == 2 * 64 * 3 * (2 * 2 * 8) / 4
    assert product.flop == 2 * 10 * 3 * 6 and product.kind == "matrix product"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jit(f)/jvp(Net.all)/backbone/stage0/block1/add", "Net.all/backbone/stage0"),
        ("jit(f)/jvp(vmap())/vmap(jit(where))/select", ""),
        ("jit(f)/transpose(jvp(A.loss))/cond/branch_0_fun/while/body/b/mul", "A.loss/b (gradient)"),
        ("", ""),
    ],
)
def test_places(name, said):
    assert reckoning.place(name) == said


def test_cards():
    text = targets.config(targets.card("h100"))
    assert (
        "device_memory_size: 84942979072\n" in text and "memory_bandwidth: 3350000000000\n" in text
    )
    assert "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES" in text
    assert len(re.findall("[{]", text)) == len(re.findall("[}]", text)) == 3
    assert targets.card("v5e:4x4").memory == 16
    with pytest.raises(UserError, match="begin with one of"):
        targets.card("gtx")
