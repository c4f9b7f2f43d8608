"""The account of compiled programs, against programs whose work can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from haksnet_jax.tools import compiled_cost

_LOOP = """
HloModule step

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %w = f32[4,4]{1,0} constant({...})
  %y = f32[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (s32[], f32[8,4]{1,0}) tuple(%next, %y)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] LIMIT
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(2)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %z = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %r = f32[8,4]{1,0} all-reduce(%z), replica_groups={}, to_apply=%sum
}
"""


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    cost = compiled_cost.program_cost(_LOOP.replace("LIMIT", "constant(7)"))
    assert cost.matrix == (7 - 2) * 2 * 8 * 4 * 4
    # Each time x and y of 8 x 4 and w of 4 x 4 floats; and the counter, the 1 and their sum.
    assert cost.num_bytes == 5 * (4 * (32 + 32 + 16) + 3 * 4)
    assert cost.collectives == [compiled_cost.Collective("all-reduce", 8 * 4 * 4, 1)]
    assert cost.unknown_loops == 0


def test_a_loop_whose_length_is_not_in_the_program_counts_once_and_is_reported():
    cost = compiled_cost.program_cost(_LOOP.replace("LIMIT", "get-tuple-element(%state.1), index=0"))
    assert (cost.matrix, cost.unknown_loops) == (2 * 8 * 4 * 4, 1)


def test_a_fusion_reads_the_slice_it_takes_and_writes_the_part_it_changes():
    text = """
%inner (p: f32[10,128], i: s32[]) -> f32[1,128] {
  %p = f32[10,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %nil = s32[] constant(0)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%p, %i, %nil), dynamic_slice_sizes={1,128}
}

%fused (q: f32[10,128], j: s32[], all: f32[20,128]) -> f32[20,128] {
  %q = f32[10,128]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %all = f32[20,128]{1,0} parameter(2)
  %row = f32[1,128]{1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  %double = f32[1,128]{1,0} add(%row, %row)
  %zero = s32[] constant(0)
  ROOT %u = f32[20,128]{1,0} dynamic-update-slice(%all, %double, %j, %zero)
}

ENTRY %main (a: f32[10,128], b: s32[], c: f32[20,128]) -> f32[20,128] {
  %a = f32[10,128]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[20,128]{1,0} parameter(2)
  ROOT %f = f32[20,128]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}
"""
    cost = compiled_cost.program_cost(text)
    assert cost.num_bytes == 128 * 4 + 4 + 128 * 4  # the row, its index, the row written
    assert cost.vector == 128


def test_a_scatter_moves_the_rows_that_it_adds_to_alone_and_in_a_fusion_too():
    text = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: f32[1000,128], i: s32[4], u: f32[4,128]) -> f32[1000,128] {
  %p = f32[1000,128]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %u = f32[4,128]{1,0} parameter(2)
  ROOT %s = f32[1000,128]{1,0} scatter(%p, %i, %u), update_window_dims={1}, to_apply=%add
}

ENTRY %main (x: f32[1000,128], j: s32[4], v: f32[4,128]) -> f32[1000,128] {
  %x = f32[1000,128]{1,0} parameter(0)
  %j = s32[4]{0} parameter(1)
  %v = f32[4,128]{1,0} parameter(2)
  %y = f32[1000,128]{1,0} scatter(%x, %j, %v), update_window_dims={1}, to_apply=%add
  ROOT %f = f32[1000,128]{1,0} fusion(%y, %j, %v), kind=kCustom, calls=%fused
}
"""
    rows, indices = 4 * 128 * 4, 4 * 4
    # Twice: what is added, where, and the rows read and written.
    assert compiled_cost.program_cost(text).num_bytes == 2 * (rows + indices + 2 * rows)


def test_arrays_take_the_tiles_that_their_layout_fills_and_nothing_where_they_lie_on_chip():
    text = """
ENTRY %main (a: bf16[4,32]) -> bf16[4,32] {
  %a = bf16[4,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %n = bf16[4,32]{1,0:T(8,128)(2,1)S(1)} negate(%a)
}
"""
    assert compiled_cost.program_cost(text).num_bytes == 8 * 128 * 2  # read; what is written stays on chip


def test_products_with_padding_are_not_counted():
    text = """
ENTRY %main (x: f32[2,5,5,3], k: f32[3,3,3,7]) -> f32[2,5,5,7] {
  %x = f32[2,5,5,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,7]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,5,5,7]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""
    # Along an axis of 5, three taps meet 5 * 3 - 2 positions inside.
    assert compiled_cost.program_cost(text).matrix == 2 * 2 * 13 * 13 * 3 * 7


def test_a_program_compiled_here_counts_what_was_written():
    def chain(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    compiled = jax.jit(chain).lower(*shapes).compile()
    cost = compiled_cost.program_cost(compiled.as_text())
    assert cost.matrix == 5 * 2 * 16 * 32 * 32
    assert cost.unknown_loops == 0


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        compiled_cost.program_cost("no program\n")
