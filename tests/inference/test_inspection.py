"""What the text of a StableHLO module may contain."""

import pytest

from cnn_jax.inference import inspection
from cnn_jax.inference.inspection import Refused

GOOD = """
#loc1 = loc("<module>"(#loc))
module @jit_f attributes {jax.uses_shape_polymorphism = true, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%arg0: tensor<?x4xui8> {jax.global_constant = "_platform_index"}) -> tensor<?x4xf32> {
    %0 = stablehlo.get_dimension_size %arg0, dim = 0 : (tensor<?x4xui8>) -> tensor<i32> loc(#loc1)
    stablehlo.custom_call @shape_assertion(%0, %0) {error_message = "stablehlo.while \\22x.y\\22("} : (tensor<i32>)
    %cst = stablehlo.constant dense<"0x00AB"> : tensor<2xf32>
    %1 = "stablehlo.case"(%0) ({
      stablehlo.return %0 : tensor<i32>
    }) : (tensor<i32>) -> tensor<i32>
    %2 = call @helper(%1) : (tensor<i32>) -> tensor<i32>
    return %2 : tensor<i32>
  }
  func.func private @helper(%arg0: tensor<i32>) -> tensor<i32> {
    return %arg0 : tensor<i32>
  }
}
"""


def test_what_networks_need_is_allowed():
    inspection.check_module(GOOD)


@pytest.mark.parametrize(
    "line, says",
    [
        ("%9 = stablehlo.while(%a = %0) : tensor<i32>", "the operation stablehlo.while"),
        ('%9 = "stablehlo.while"(%0) ({', "the operation stablehlo.while"),
        ('    "stablehlo.send"(%0)', "the operation stablehlo.send"),
        ('%9 = "stablehlo.custom_call"(%0) {call_target_name = "x"}', "a custom call (in another form)"),
        ("%9 = stablehlo.custom_call @xla_python_cpu_callback(%0)", "a custom call (xla_python_cpu_callback)"),
        ('%9 = stablehlo.custom_call @"odd name"(%0)', 'a custom call ("odd name")'),
        ("%9 = mhlo.add %0, %0", "the operation mhlo.add"),
        ("%9 = chlo.top_k(%0)", "the operation chlo.top_k"),
        ("%9:2 = stablehlo.infeed %0", "the operation stablehlo.infeed"),
    ],
)
def test_anything_else_is_refused(line, says):
    with pytest.raises(Refused) as raised:
        inspection.check_module(GOOD.replace("    return %2", f"    {line}\n    return %2"))
    assert says in str(raised.value)


def test_recursion_and_exponential_calls_are_refused():
    with pytest.raises(Refused, match="call each other without end"):
        inspection.check_module(GOOD.replace("return %arg0", "%3 = call @main(%arg0)\n    return %arg0"))
    functions = "".join(
        f"\n  func.func private @f{i}() {{\n" + f"    call @f{i + 1}() : () -> ()\n" * 2 + "  }" for i in range(40)
    )
    module = GOOD.rstrip().removesuffix("}") + functions + "\n  func.func private @f40() {\n  }\n}\n"
    with pytest.raises(Refused, match="more than 1,000,000 operations"):
        inspection.check_module(module)
