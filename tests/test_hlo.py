"""Reading the text of compiled programs: counts are exact, and what must not be in a loop is found."""

import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import hlo

# A loop of ten trips: a convolution, the gradient of its kernel, a fusion that takes a slice, and a matrix product.
PROGRAM = """\
HloModule jit_scanned, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }, \
entry_computation_layout={(f32[8,3,3,4]{3,2,1,0}, f32[8]{0})->(f32[8,3,3,4]{3,2,1,0}, f32[8]{0})}

%slice (p0: u8[1000,32,32,4], p1: s32[]) -> f32[2,32,32,4] {
  %p0 = u8[1000,32,32,4]{3,2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = u8[2,32,32,4]{3,2,1,0} dynamic-slice(%p0, %p1, %zero, %zero, /*index=4*/%zero), dynamic_slice_sizes={2,32,32,4}
  ROOT %converted = f32[2,32,32,4]{3,2,1,0} convert(%row)
}

%body (state: (s32[], f32[8,3,3,4], f32[8], u8[1000,32,32,4])) -> (s32[], f32[8,3,3,4], f32[8], u8[1000,32,32,4]) {
  %state = (s32[], f32[8,3,3,4]{3,2,1,0}, f32[8]{0}, u8[1000,32,32,4]{3,2,1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %kernel = f32[8,3,3,4]{3,2,1,0} get-tuple-element(%state), index=1
  %bias = f32[8]{0} get-tuple-element(%state), index=2
  %all = u8[1000,32,32,4]{3,2,1,0} get-tuple-element(%state), index=3
  %images = f32[2,32,32,4]{3,2,1,0} fusion(%all, %step), kind=kLoop, calls=%slice
  %forward = (f32[2,32,32,8]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %outputs = f32[2,32,32,8]{3,2,1,0} get-tuple-element(%forward), index=0
  %backward = (f32[8,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%images, %outputs), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %new = f32[8,3,3,4]{3,2,1,0} get-tuple-element(%backward), index=0
  PLANTED
  ROOT %next = (s32[], f32[8,3,3,4]{3,2,1,0}, f32[8]{0}, u8[1000,32,32,4]{3,2,1,0}) tuple(%step, %new, %bias, %all)
}

%condition (state.1: (s32[], f32[8,3,3,4], f32[8], u8[1000,32,32,4])) -> pred[] {
  %state.1 = (s32[], f32[8,3,3,4]{3,2,1,0}, f32[8]{0}, u8[1000,32,32,4]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i, %i), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%called (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  INNER
  ROOT %same = f32[8]{0} copy(%p)
}

ENTRY %main (arg0: f32[8,3,3,4], arg1: f32[8], arg2: u8[1000,32,32,4]) -> (f32[8,3,3,4], f32[8]) {
  %arg0 = f32[8,3,3,4]{3,2,1,0} parameter(0)
  %arg1 = f32[8]{0} parameter(1)
  %arg2 = u8[1000,32,32,4]{3,2,1,0} parameter(2)
  %zero.1 = s32[] constant(0)
  %begin = (s32[], f32[8,3,3,4]{3,2,1,0}, f32[8]{0}, u8[1000,32,32,4]{3,2,1,0}) tuple(%zero.1, %arg0, %arg1, %arg2)
  OUTSIDE
  %loop = (s32[], f32[8,3,3,4]{3,2,1,0}, f32[8]{0}, u8[1000,32,32,4]{3,2,1,0}) while(%begin), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %result = f32[8,3,3,4]{3,2,1,0} get-tuple-element(%loop), index=1
  %end = f32[8]{0} get-tuple-element(%loop), index=2
  ROOT %results = (f32[8,3,3,4]{3,2,1,0}, f32[8]{0}) tuple(%result, %end)
}
"""
CONVOLUTION = 2 * (2 * 32 * 32 * 8) * (3 * 3 * 4)  # two operations per output and weight


def program(planted="", outside="", inner=""):
    """The program, with instructions added to the loop, before it, or to a computation that the loop calls."""
    text = PROGRAM.replace("PLANTED", planted).replace("OUTSIDE", outside).replace("INNER", inner)
    return hlo.parse(text)


def test_loops_and_costs_are_counted():
    module = program()
    assert module.loops() == [hlo.Loop("body", 10, "")]
    cost = hlo.cost(module, "body")
    images, kernel, outputs = 4 * 2 * 32 * 32 * 4, 4 * 8 * 3 * 3 * 4, 4 * 2 * 32 * 32 * 8
    sliced = images // 4 + 4  # bytes of pixels, and the number of the step: the rest of the images is not read
    assert cost == hlo.Cost(3, 2, sliced + images + 2 * (images + kernel + outputs), 2 * CONVOLUTION, {})
    assert hlo.cost(module, "main") == hlo.Cost(*(10 * part for part in cost[:4]), {})
    assert hlo.problems(module) == [] and module.not_aliased() == []


@pytest.mark.parametrize("target, labels", [("__cudnn$convBackwardInput", "b01f_o01i->b01f"), ("", "b01f_o01i->b01f")])
def test_operations_of_the_other_convolutions(target, labels):
    opcode, kernel = ("custom-call", f', custom_call_target="{target}"') if target else ("convolution", "")
    operands, result = ("%outputs, %kernel", "2,32,32,4") if target else ("%images, %kernel", "2,32,32,8")
    planted = f"%more = f32[{result}]{{3,2,1,0}} {opcode}({operands}), window={{size=3x3}}, dim_labels={labels}{kernel}"
    assert hlo.cost(program(planted), "body").flops == 3 * CONVOLUTION


def test_operations_of_matrix_products():
    planted = (
        "%left = f32[5,7]{1,0} bitcast(%kernel)\n  %right = f32[7,3]{1,0} bitcast(%kernel)\n"
        "  %product = f32[5,3]{1,0} dot(%left, %right), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
        "  %again = (f32[5,3]{1,0}, s8[64]{0}) custom-call(%left, %right), "
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
    )
    assert hlo.cost(program(planted), "body").flops == 2 * CONVOLUTION + 2 * (2 * 5 * 7 * 3)


@pytest.mark.parametrize(
    "planted, found",
    [
        ("%out = token[] outfeed(%kernel, %step)", "a transfer between host and device"),
        ("%sent = (f32[8]{0}, u32[], token[]) send(%bias, %step), channel_id=1", "a transfer between host"),
        ("%moved = f32[8]{0:S(5)} copy(%bias)", "a transfer between host and device"),
        ('%moved = f32[8]{0} custom-call(%bias), custom_call_target="MoveToHost"', "a transfer between host"),
        ('%call = f32[8]{0} custom-call(%bias), custom_call_target="xla_ffi_python_gpu_callback"', "a callback"),
        ("%wide = f64[8]{0} convert(%bias)", "float64"),
        ("%put = f32[8]{0} scatter(%bias, %step, %bias), to_apply=%sum", "a scatter"),
        ("%pool = f32[8]{0} select-and-scatter(%bias, %bias, %step), select=%sum, scatter=%sum", "a scatter"),
        ("%if = f32[8]{0} conditional(%step, %bias, %bias), branch_computations={%called, %called}", "a conditional"),
        ("%rows = f32[8,32,32,4]{3,2,1,0} all-gather(%images), dimensions={0}", "an all-gather of floating-point"),
        ("%rows = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%bias), dimensions={0}", "an all-gather of"),
    ],
)
def test_what_is_planted_in_a_loop_is_found(planted, found):
    (problem,) = hlo.problems(program(planted))
    assert problem.startswith(found) and "in loop body: " in problem
    assert hlo.problems(program(outside=planted.replace("%bias", "%arg1"))) == []


def test_what_a_loop_calls_is_searched():
    call = "%result.1 = f32[8]{0} call(%bias), to_apply=%called"
    assert hlo.problems(program(call)) == []
    (problem,) = hlo.problems(program(call, inner="%wide = f64[8]{0} convert(%p)"))
    assert problem.startswith("float64 in loop body: wide")


def test_gathered_pixels_are_no_activations():
    assert hlo.problems(program("%rows = u8[8,32,32,4]{3,2,1,0} all-gather(%all), dimensions={0}")) == []


@pytest.mark.parametrize(
    "moved",
    [
        "%kernel.1 = f32[8,3,3,4]{3,2,1,0} transpose(%kernel), dimensions={3,0,1,2}",
        "%kernel.0 = f32[3,3,4,8]{3,2,1,0} bitcast(%kernel)\n  %kernel.1 = f32[3,3,4,8]{2,1,0,3} copy(%kernel.0)",
    ],
)
def test_a_kernel_that_is_transposed_for_a_convolution_is_found(moved):
    module = hlo.parse(
        PROGRAM.replace("PLANTED", "")
        .replace("custom-call(%images, %kernel)", "custom-call(%images, %bitcast.1)")
        .replace("  %forward =", f"  {moved}\n  %bitcast.1 = f32[8,3,3,4]{{3,2,1,0}} bitcast(%kernel.1)\n  %forward =")
    )
    (problem,) = hlo.problems(module)
    assert problem.startswith("an operand that is transposed for a convolution in loop body: forward")


@pytest.mark.parametrize("channels, problems", [(3, 0), (4, 1)])
def test_images_of_three_channels_may_be_transposed(channels, problems):
    moved = f"%images.1 = f32[5,{channels},32,32]{{3,2,1,0}} transpose(%images), dimensions={{0,3,1,2}}\n  %forward ="
    text = PROGRAM.replace("custom-call(%images, %kernel)", "custom-call(%images.1, %kernel)").replace("[2,", "[5,")
    assert len(hlo.problems(hlo.parse(text.replace("%forward =", moved)))) == problems


def test_a_copy_in_the_same_layout_is_no_transposition():
    copied = "%kernel.1 = f32[8,3,3,4]{3,2,1,0} copy(%kernel)\n  %forward ="
    text = PROGRAM.replace("%images, %kernel)", "%images, %kernel.1)").replace("%forward =", copied)
    assert hlo.problems(hlo.parse(text)) == []


def test_outputs_without_the_buffer_of_an_argument_are_named():
    text = re.sub(r"\{1\}: \(1, \{\}, may-alias\)", "", PROGRAM)
    assert hlo.parse(text).not_aliased() == [1]
    assert hlo.parse(PROGRAM.replace("input_output_alias", "other")).not_aliased() == [0, 1]


def test_what_devices_send_is_counted():
    planted = "%all-reduce = f32[8]{0} all-reduce-start(%bias), to_apply=%sum\n  %d = f32[8]{0} all-reduce-done(%bias)"
    assert hlo.cost(program(planted), "body").collectives == {"all-reduce": 32}


LAUNCHES = """\
000: kCommandBuffer [source       | next=003 (1)]
    001: kCopy         [source | sink] kCopy
    002: kCustomKernel [source | sink] transpose grid: [1, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
003: kWhile         [prev=000 (1) | sink]
condition:
  body:
    000: kCommandBuffer [source        | next=006 (1)]
        004: kCustomKernel [source | sink] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
        005: kCustomKernel [source | sink] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
    006: kConvolution   [prev=000 (1)  | next=007 (1)] kConvolution
    007: kCustomKernel [source | sink] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
"""


def test_launches_are_counted():
    trip, once = hlo.launches(LAUNCHES)
    assert trip == hlo.Launches(kernels=4, graphs=1, loose=2)
    assert once == hlo.Launches(kernels=2, graphs=1, loose=0)


def test_a_loop_in_a_graph_is_launched_with_it():
    text = "000: kCommandBuffer [source | sink]\n" + "".join(
        f"    {line}\n" for line in LAUNCHES.replace("kCommandBuffer", "kCopy").splitlines()
    )
    trip, once = hlo.launches(text)
    assert (trip.graphs, trip.loose) == (0, 0) and trip.kernels > 3 and once.graphs == 1


def test_a_program_without_a_loop_is_one_trip():
    text = "001: kCopy [source | sink] kCopy\n002: kCustomKernel [source | sink] add\n"
    assert hlo.launches(text) == (hlo.Launches(2, 0, 2), hlo.Launches(0, 0, 0))
