//! Arguments of embeddings and constants.

use super::site::{Arguments, Site};
use crate::backend::args::{
    EmbeddingArgs, OpArgs, ParameterArgs, PositionEmbeddingArgs, RelativeBiasArgs, TimestepEmbeddingArgs,
};
use crate::program::{Embedding, Grid, Parameter, PositionEmbedding, RelativeBias, Tensor, TimestepEmbedding};

impl Arguments for Embedding {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Embedding { args: EmbeddingArgs { index: at.slot(self.index), y: at.y() }, table: self.table }
    }
}

impl Arguments for TimestepEmbedding {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let TimestepEmbedding { t, dim, cos_first, shift } = *self;
        let numbers = at.ty.cols() / dim as usize;
        OpArgs::TimestepEmbedding(TimestepEmbeddingArgs { t: at.slot(t), numbers, y: at.y(), cos_first, shift })
    }
}

impl Arguments for PositionEmbedding {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let interpolation = self.interpolation;
        // The result is (h, w, dim).
        let [height, width] = [at.ty.dims()[0], at.ty.dims()[1]];
        let spans = self.spans([height, width]);
        let zero = self.grid == Grid::SeveralFrames && height == 1;
        OpArgs::PositionEmbedding(PositionEmbeddingArgs { y: at.y(), height, width, spans, interpolation, zero })
    }
}

impl Arguments for Parameter {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Parameter { args: ParameterArgs { y: at.y() }, tensor: self.tensor }
    }
}

impl Arguments for RelativeBias {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let RelativeBias { table, buckets, max_distance, .. } = *self;
        OpArgs::RelativeBias { args: RelativeBiasArgs { y: at.y(), buckets, max_distance }, table }
    }
}
