//! Layers one after the other, and side by side.

use super::Map;
use super::conv::{Conv, Grid};

/// What becomes of the values under a kernel, channel by channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pool {
    /// The largest.
    Max,
    /// The mean of those inside the picture.
    Mean,
}

/// A layer.
pub(super) enum Layer {
    Conv(Conv),
    Pool(Pool, Grid),
    /// Several chains of the same input, whose channels follow each other.
    Branches(Vec<Vec<Layer>>),
}

impl Layer {
    pub fn apply(&self, x: &Map) -> Map {
        match self {
            Layer::Conv(conv) => conv.apply(x),
            Layer::Pool(pool, grid) => pool.apply(grid, x),
            Layer::Branches(branches) => beside(&branches.iter().map(|branch| chain(branch, x)).collect::<Vec<_>>()),
        }
    }

    /// What the layer makes of a size; 0 where the picture is too small for it.
    pub fn size(&self, size: [usize; 2]) -> [usize; 2] {
        match self {
            Layer::Conv(conv) => conv.grid().size(size),
            Layer::Pool(_, grid) => grid.size(size),
            Layer::Branches(branches) => branches[0].iter().fold(size, |size, layer| layer.size(size)),
        }
    }
}

/// The result of at least one layer after the other.
pub(super) fn chain(layers: &[Layer], x: &Map) -> Map {
    let (first, others) = layers.split_first().expect("a layer");
    others.iter().fold(first.apply(x), |x, layer| layer.apply(&x))
}

/// Maps of one size with their channels side by side.
fn beside(maps: &[Map]) -> Map {
    let channels = maps.iter().map(|map| map.channels).sum();
    let size = maps[0].size;
    let mut values = Vec::with_capacity(size[0] * size[1] * channels);
    for place in 0..size[0] * size[1] {
        maps.iter().for_each(|map| values.extend_from_slice(&map.values[place * map.channels..][..map.channels]));
    }
    Map { size, channels, values }
}

impl Pool {
    fn apply(self, grid: &Grid, x: &Map) -> Map {
        let size = grid.size(x.size);
        let mut values = Vec::with_capacity(size[0] * size[1] * x.channels);
        for place in 0..size[0] * size[1] {
            let start = values.len();
            let empty = match self {
                Pool::Max => f32::NEG_INFINITY,
                Pool::Mean => 0.0,
            };
            values.resize(start + x.channels, empty);
            let out = &mut values[start..];
            let mut count = 0.0;
            for (from, _) in grid.under([place / size[1], place % size[1]], x.size) {
                let pixel = &x.values[from * x.channels..][..x.channels];
                match self {
                    Pool::Max => out.iter_mut().zip(pixel).for_each(|(out, v)| *out = out.max(*v)),
                    Pool::Mean => out.iter_mut().zip(pixel).for_each(|(out, v)| *out += v),
                }
                count += 1.0;
            }
            if matches!(self, Pool::Mean) {
                out.iter_mut().for_each(|out| *out /= count);
            }
        }
        Map { size, channels: x.channels, values }
    }
}
