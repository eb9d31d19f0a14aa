//! Linear layers.

use super::arena::{Arena, CodesView, Reads};
use super::epilogue::{Epilogue, PerRow};
use super::floats;
use super::gemm::{Matrix, product_f32, product_i8};
use super::quantize::Fixed;
use super::simd::Isa;
use super::simd::tiles::MatrixMut;
use super::sink::{self, Coded, Plain, Sink};
use crate::backend::args::{Floats, Input, LinearArgs, Output, PerSample};
use crate::format::TensorView;
use crate::program::Act;

/// See [`Op::Linear`](crate::program::Op::Linear) and [`Op::GatedLinear`](crate::program::Op::GatedLinear).
pub fn linear<I: Isa>(isa: I, arena: &mut Arena, args: &LinearArgs, weight: &TensorView, bias: Option<&TensorView>) {
    let at = arena.first(args.y.slot());
    let (out, reads) = arena.write(at..at + args.y.bytes());
    match &args.y {
        Output::Floats(y) => product(isa, &reads, args, weight, bias, Plain, sink::floats(out, y)),
        Output::Codes(to) => {
            let ranges = Fixed::new(&reads, to.fixed, to.codes.rows);
            let coded = Coded::new(&ranges, to.codes.top);
            product(isa, &reads, args, weight, bias, coded, sink::codes(out, &to.codes));
            sink::complete(isa, out, &to.codes, &ranges);
        }
    }
}

fn product<I: Isa, S: Sink>(
    isa: I,
    reads: &Reads<'_>,
    args: &LinearArgs,
    weight: &TensorView,
    bias: Option<&TensorView>,
    sink: S,
    out: MatrixMut<'_, S::Element>,
) {
    let epilogue = Epilogue { gated: args.gated, ..epilogue(reads, bias, args.act, args.gate, args.residual) };
    match (&args.x, weight) {
        (Input::Codes(x), TensorView::Codes(w)) => {
            let codes = reads.codes(x);
            product_i8(isa, &matrix_of(&codes), &codes, w, &epilogue, sink, out);
        }
        (Input::Floats(x), _) => {
            let rows = Matrix { data: reads.floats(x), stride: x.cols, len: x.cols, sums: &[] };
            product_f32(isa, &rows, weight, &epilogue, sink, out);
        }
        (Input::Codes(_), _) => unreachable!("the shape rules pair codes with integer weights only"),
    }
}

fn matrix_of<'a>(codes: &CodesView<'a>) -> Matrix<'a, u8> {
    Matrix { data: codes.codes, stride: codes.stride, len: codes.cols, sums: codes.sum }
}

/// Resolves what comes after a product.
pub fn epilogue<'a>(
    reads: &Reads<'a>,
    bias: Option<&TensorView<'a>>,
    act: Act,
    gate: Option<(PerSample, usize)>,
    residual: Option<Floats>,
) -> Epilogue<'a> {
    Epilogue {
        bias: bias.map(floats),
        act,
        gated: false,
        shift: None,
        gate: gate.map(|(gate, offset)| PerRow::new(reads, &gate, offset)),
        residual: residual.map(|r| reads.floats(&r)),
    }
}
