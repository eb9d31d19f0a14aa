//! The CPU back end: rayon over tiles, SIMD micro-kernels inside.
//!
//! [`Cpu`] is generic over its instruction set and knows no other; [`Tier`] chooses one at the edge. Results do not
//! depend on the number of threads: every output element is made by one task, in an order that depends on its own
//! length only.

mod arena;
mod attention;
mod attention_i8;
mod conv;
mod embed;
mod epilogue;
mod gemm;
mod layout;
mod linear;
pub mod math;
mod norm;
mod pointwise;
mod quantize;
mod resample;
mod rotary;
mod round;
mod sampler;
mod scratch;
pub mod simd;
mod sink;
mod vector_quantize;

pub use arena::Arena;

use super::args::*;
use super::cost::Ceilings;
use super::{Backend, Call, Clock, Footprint, MemoryRules};
use crate::error::Result;
use crate::format::TensorView;
use simd::Isa;
use simd::scalar::Scalar;
use std::time::Instant;

/// The CPU, with one of its instruction sets, on the current rayon pool.
///
/// The instruction set is looked at once per op; what an op does is compiled for each. So nothing above the back end is
/// compiled more than once, and no call goes through a pointer.
#[derive(Clone, Copy)]
pub struct Cpu {
    tier: Tier,
    makes_codes: bool,
}

impl Cpu {
    /// A back end that uses an instruction set of this processor.
    pub fn new(tier: impl Into<Tier>) -> Self {
        Cpu { tier: tier.into(), makes_codes: true }
    }

    /// A back end that uses the best instruction set of this processor.
    pub fn best() -> Self {
        Cpu::new(Tier::best())
    }

    /// The same, but every node of a program is an op of its own, to be looked at: products make no codes, though that would be
    /// faster. Results are the same to the bit.
    pub fn node_by_node(self) -> Self {
        Cpu { makes_codes: false, ..self }
    }
}

/// `$body` with `$isa` bound to the instruction set of `$tier`, compiled for each.
macro_rules! with_isa {
    ($tier:expr, $isa:ident => $body:expr) => {
        match $tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512($isa) => $body,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2($isa) => $body,
            Tier::Portable($isa) => $body,
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl From<simd::avx512::Avx512> for Tier {
    fn from(isa: simd::avx512::Avx512) -> Self {
        Tier::Avx512(isa)
    }
}

#[cfg(target_arch = "x86_64")]
impl From<simd::avx2::Avx2> for Tier {
    fn from(isa: simd::avx2::Avx2) -> Self {
        Tier::Avx2(isa)
    }
}

impl From<Scalar> for Tier {
    fn from(isa: Scalar) -> Self {
        Tier::Portable(isa)
    }
}

/// The instruction sets, best first; a value is proof that this processor has it.
#[derive(Clone, Copy)]
pub enum Tier {
    /// AVX-512 with VNNI, perhaps with AMX.
    #[cfg(target_arch = "x86_64")]
    Avx512(simd::avx512::Avx512),
    /// AVX2 with FMA, perhaps with AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx2(simd::avx2::Avx2),
    /// Plain Rust.
    Portable(Scalar),
}

impl Tier {
    /// All tiers of this processor, the one to choose first.
    pub fn available() -> Vec<Tier> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(simd::avx512::Avx512::new().map(Tier::Avx512));
            tiers.extend(simd::avx2::Avx2::with_vnni().map(Tier::Avx2));
            tiers.extend(simd::avx2::Avx2::new().map(Tier::Avx2));
        }
        tiers.push(Tier::Portable(Scalar));
        // Last, though it should be the fastest: nobody has seen it run.
        #[cfg(target_arch = "x86_64")]
        tiers.extend(simd::avx512::Avx512::with_tiles().map(Tier::Avx512));
        tiers
    }

    /// The best of this processor.
    pub fn best() -> Tier {
        Tier::available()[0]
    }

    /// Calls a [`Vectorized`](simd::Vectorized) function compiled with this instruction set.
    pub fn run<V: simd::Vectorized>(self, function: V, arguments: V::Arguments<'_>) -> V::Output {
        with_isa!(self, isa => isa.run(function, arguments))
    }

    /// The name in reports and options.
    pub fn name(&self) -> &'static str {
        with_isa!(*self, isa => isa.name())
    }
}

impl MemoryRules for Cpu {
    fn narrow(&self) -> Element {
        Element::F32
    }

    fn makes_codes(&self) -> bool {
        self.makes_codes
    }

    fn thresholds(&self) -> bool {
        true
    }

    fn workspace<T>(&self, op: &OpArgs<T>) -> usize {
        match op {
            OpArgs::GroupNorm { args, .. } => norm::group_norm_workspace(args),
            OpArgs::Attention(a) if a.int8 => attention_i8::workspace(a),
            OpArgs::Attention(_)
            | OpArgs::Linear { .. }
            | OpArgs::Conv2d { .. }
            | OpArgs::LayerNorm { .. }
            | OpArgs::Pointwise(_)
            | OpArgs::Add(_)
            | OpArgs::Multiply(_)
            | OpArgs::Concat(_)
            | OpArgs::Slice(_)
            | OpArgs::PadRows { .. }
            | OpArgs::Rotary(_)
            | OpArgs::Quantize { .. }
            | OpArgs::Round(_)
            | OpArgs::VectorQuantize { .. }
            | OpArgs::Resample(_)
            | OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::RelativeBias { .. }
            | OpArgs::Patch(_) => 0,
        }
    }

    fn footprint(&self, arena: usize, _: usize) -> Footprint {
        Footprint { arena, weights: 0 }
    }
}

impl Backend for Cpu {
    type Arena = Arena;
    type Weight<'a> = TensorView<'a>;
    type Weights = ();
    type Mark = Instant;

    fn name(&self) -> String {
        format!("cpu ({})", self.tier.name())
    }

    /// The bench `linear` measures the processor's.
    fn ceilings(&self) -> Result<Option<Ceilings>> {
        Ok(None)
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn weight<'a>(&self, tensor: TensorView<'a>) -> Result<TensorView<'a>> {
        Ok(tensor)
    }

    /// They are read from the file.
    fn ready(&self, _: &[TensorView<'_>]) -> Result<()> {
        Ok(())
    }

    fn arena(&self, bytes: usize, (): &()) -> Result<Arena> {
        Arena::new(bytes)
    }

    fn prepare<'a, T: 'a>(&self, ops: impl Iterator<Item = &'a OpArgs<T>>) {
        scratch::reserve(ops.map(|op| self.scratch_bytes(op)).max().unwrap_or(0));
    }

    /// All code of the processor is there.
    fn load(&self, _: &mut Arena, _: impl FnOnce(&Self, &mut Arena)) -> Result<()> {
        Ok(())
    }

    fn write_f32(&self, arena: &mut Arena, at: usize, data: &[f32]) -> Result<()> {
        arena::floats_mut(&mut arena.bytes_mut()[at..at + data.len() * 4]).copy_from_slice(data);
        Ok(())
    }

    fn write_u32(&self, arena: &mut Arena, at: usize, data: &[u32]) -> Result<()> {
        arena::typed_mut::<u32>(&mut arena.bytes_mut()[at..at + data.len() * 4]).copy_from_slice(data);
        Ok(())
    }

    fn read_bytes(&self, arena: &Arena, at: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&arena.bytes()[at..at + out.len()]);
        Ok(())
    }

    fn mark(&self, clock: Clock) -> Result<Instant> {
        Ok(clock())
    }

    fn move_mark(&self, mark: &mut Instant, clock: Clock) -> Result<()> {
        *mark = clock();
        Ok(())
    }

    fn between(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok((*to - *from).as_secs_f64())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn begin(&self, arena: &mut Arena, call: Call) -> Result<()> {
        arena.call = call;
        Ok(())
    }

    fn replay(&self, arena: &mut Arena, call: Call, body: impl Fn(&Self, &mut Arena) -> Result<()>) -> Result<()> {
        arena.call = call;
        body(self, arena)
    }

    /// Nothing is recorded: calling an op costs nothing beside its work.
    fn forget(&self, _: &mut Arena) {}

    fn linear(&self, arena: &mut Arena, args: &LinearArgs, weight: &TensorView, bias: Option<&TensorView>) {
        with_isa!(self.tier, isa => linear::linear(isa, arena, args, weight, bias));
    }

    fn conv2d(&self, arena: &mut Arena, args: &Conv2dArgs, weight: &TensorView, bias: Option<&TensorView>) {
        with_isa!(self.tier, isa => conv::conv2d(isa, arena, args, weight, bias));
    }

    fn attention(&self, arena: &mut Arena, args: &AttentionArgs) {
        match args.int8 {
            true => with_isa!(self.tier, isa => attention_i8::attention(isa, arena, args)),
            false => with_isa!(self.tier, isa => attention::attention(isa, arena, args)),
        }
    }

    fn layer_norm(
        &self,
        arena: &mut Arena,
        args: &LayerNormArgs,
        weight: Option<&TensorView>,
        bias: Option<&TensorView>,
    ) {
        with_isa!(self.tier, isa => norm::layer_norm(isa, arena, args, weight.map(floats), bias.map(floats)));
    }

    fn group_norm(&self, arena: &mut Arena, args: &GroupNormArgs, weight: &TensorView, bias: &TensorView) {
        with_isa!(self.tier, isa => norm::group_norm(isa, arena, args, floats(weight), floats(bias)));
    }

    fn pointwise(&self, arena: &mut Arena, args: &PointwiseArgs) {
        with_isa!(self.tier, isa => pointwise::pointwise(isa, arena, args));
    }

    fn add(&self, arena: &mut Arena, args: &PairArgs) {
        with_isa!(self.tier, isa => pointwise::add(isa, arena, args));
    }

    fn multiply(&self, arena: &mut Arena, args: &PairArgs) {
        with_isa!(self.tier, isa => pointwise::multiply(isa, arena, args));
    }

    fn concat(&self, arena: &mut Arena, args: &ConcatArgs) {
        layout::concat(arena, args);
    }

    fn slice(&self, arena: &mut Arena, args: &SliceArgs) {
        layout::slice(arena, args);
    }

    fn pad_rows(&self, arena: &mut Arena, args: &PadRowsArgs, table: &TensorView) {
        layout::pad_rows(arena, args, table);
    }

    fn rotary(&self, arena: &mut Arena, args: &RotaryArgs) {
        with_isa!(self.tier, isa => rotary::rotary(isa, arena, args));
    }

    fn quantize(&self, arena: &mut Arena, args: &QuantizeArgs, factors: Option<&TensorView>) {
        with_isa!(self.tier, isa => quantize::quantize(isa, arena, args, factors.map(floats)));
    }

    fn round(&self, arena: &mut Arena, args: &RoundArgs) {
        with_isa!(self.tier, isa => round::round(isa, arena, args));
    }

    fn vector_quantize(&self, arena: &mut Arena, args: &VectorQuantizeArgs, table: &TensorView) {
        with_isa!(self.tier, isa => vector_quantize::vector_quantize(isa, arena, args, floats(table)));
    }

    fn resample(&self, arena: &mut Arena, args: &ResampleArgs) {
        with_isa!(self.tier, isa => resample::resample(isa, arena, args));
    }

    fn parameter(&self, arena: &mut Arena, args: &ParameterArgs, tensor: &TensorView) {
        embed::parameter(arena, args, tensor);
    }

    fn embedding(&self, arena: &mut Arena, args: &EmbeddingArgs, table: &TensorView) {
        embed::embedding(arena, args, table);
    }

    fn timestep_embedding(&self, arena: &mut Arena, args: &TimestepEmbeddingArgs) {
        embed::timestep_embedding(arena, args);
    }

    fn position_embedding(&self, arena: &mut Arena, args: &PositionEmbeddingArgs) {
        embed::position_embedding(arena, args);
    }

    fn relative_bias(&self, arena: &mut Arena, args: &RelativeBiasArgs, table: &TensorView) {
        embed::relative_bias(arena, args, table);
    }

    fn patch(&self, arena: &mut Arena, args: &PatchArgs) {
        layout::patch(arena, args);
    }

    fn model_input(&self, arena: &mut Arena, args: &ModelInputArgs) {
        sampler::model_input(arena, args);
    }

    fn sampler_step(&self, arena: &mut Arena, args: &SamplerStepArgs) {
        sampler::sampler_step(arena, args);
    }
}

/// A tensor that the shape rules proved to be plain f32.
fn floats<'a>(tensor: &TensorView<'a>) -> &'a [f32] {
    match tensor {
        TensorView::F32(v) => v,
        other => unreachable!("the shape rules let only f32 through, not {other:?}"),
    }
}

impl Cpu {
    /// Private memory of each thread that an op needs, in bytes.
    fn scratch_bytes<T>(&self, op: &OpArgs<T>) -> usize {
        match op {
            OpArgs::Linear { args, .. } => gemm::scratch_bytes(&args.x, 1),
            OpArgs::Conv2d { args, .. } => with_isa!(self.tier, isa => conv::scratch_bytes(isa, args)),
            OpArgs::Attention(a) if a.int8 => attention_i8::scratch_bytes(a),
            OpArgs::Attention(a) => attention::scratch_bytes(a),
            OpArgs::LayerNorm { args, .. } => args.x.cols * 4,
            OpArgs::GroupNorm { args, .. } => norm::group_norm_scratch(args),
            OpArgs::Quantize { args, factors } => factors.as_ref().map_or(0, |_| args.x.cols * 4),
            OpArgs::VectorQuantize { args, .. } => vector_quantize::scratch_bytes(args),
            OpArgs::Pointwise(_)
            | OpArgs::Add(_)
            | OpArgs::Multiply(_)
            | OpArgs::Concat(_)
            | OpArgs::Slice(_)
            | OpArgs::PadRows { .. }
            | OpArgs::Rotary(_)
            | OpArgs::Round(_)
            | OpArgs::Resample(_)
            | OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::RelativeBias { .. }
            | OpArgs::Patch(_) => 0,
        }
    }
}
