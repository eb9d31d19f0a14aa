//! Latents to images, whole or in tiles.

use super::tiles::{self, Blend, Tiles};
use super::{DECODE_BYTES, Event, Pipeline, Request};
use crate::backend::{Backend, Needs};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::plan::{Binding, Plan};
use crate::program::{Dims, Role};

/// What a decoder is bound to for one tile of latents.
pub(super) fn shape([height, width]: [usize; 2]) -> Binding {
    let dims = Dims { batch: 1, conditions: 1, height, width, tokens: 1 };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}

impl<D: AsRef<[u8]>> Pipeline<'_, D> {
    /// Rows and columns of latents to decode at once: those asked for, else the whole image if that fits the memory,
    /// else the largest square that does.
    pub(super) fn tile<N: Needs>(&self, needs: &N, request: &Request) -> Result<[usize; 2]> {
        let size = request.latent_size;
        if !self.has(Role::VaeDecoder) {
            return Ok(size);
        }
        if let Some(tile) = request.tile {
            if tile == 0 {
                return Err(Error::request("tile", "at least 1 row of latents", 0));
            }
            return Ok(size.map(|n| n.min(tile)));
        }
        let arena = |tile| Ok(Plan::of_role(needs, self.packed, Role::VaeDecoder, &shape(tile))?.arena);
        tiles::largest(size, request.max_memory.unwrap_or(DECODE_BYTES), &arena)
    }

    /// Decodes latents `(n, h, w, c)` to images `(n, h, w, 3)` in 0..1, one at a time, in tiles of `tile` latents: an
    /// image is work enough for all threads, and memory does not grow with the batch.
    pub(super) fn decode<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        tile: [usize; 2],
        latents: &[f32],
        seen: &mut dyn FnMut(Event),
    ) -> Result<(Vec<f32>, [usize; 2])> {
        if !self.has(Role::VaeDecoder) {
            let images = latents.iter().map(|x| (x / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
            return Ok((images, request.latent_size));
        }
        let mut executor = Executor::new(backend, self.packed, Role::VaeDecoder, shape(tile))?;
        let &[_, rows, columns, channels] = executor.plan().output_type.dims() else {
            return Err(Error::request("vae decoder", "a result (n, h, w, c)", "another shape"));
        };
        if channels != 3 {
            return Err(Error::request("vae decoder", "3 colour channels", channels));
        }
        let scale = self.meta().pipeline.pixels_per_latent as usize;
        if [rows, columns] != tile.map(|n| n * scale) {
            let expected = format!("{scale} pixels per latent, as META says");
            return Err(Error::request("vae decoder", expected, format!("{rows} x {columns} of {tile:?}")));
        }
        let size @ [height, width] = request.latent_size.map(|n| n * scale);
        let total = request.subjects.len();
        let len = height * width * channels;
        let mut images = vec![0.0; total * len];
        let tiles = Tiles::of(request.latent_size, tile);
        let (latent_len, tile_len) = (self.latent_len(request), tile[0] * tile[1]);
        let mut cut = vec![0.0; latent_len / (request.latent_size[0] * request.latent_size[1]) * tile_len];
        let mut made = vec![0.0; if tiles.len() > 1 { rows * columns * channels } else { 0 }];
        for (i, (latents, image)) in latents.chunks_exact(latent_len).zip(images.chunks_exact_mut(len)).enumerate() {
            if tiles.len() == 1 {
                executor.write_sample(latents)?;
                executor.call(0)?;
                executor.read_output(image)?;
            } else {
                let mut sum = Blend::new(height * width, channels);
                for t in 0..tiles.len() {
                    tiles.cut(t, 1, latents, &mut cut);
                    executor.write_sample(&cut)?;
                    executor.call(0)?;
                    executor.read_output(&mut made)?;
                    tiles.blend(t, scale, &made, &mut sum);
                }
                sum.finish(image);
            }
            image.iter_mut().for_each(|x| *x = (*x / 2.0 + 0.5).clamp(0.0, 1.0));
            seen(Event::Decode { done: i + 1, total });
        }
        Ok((images, size))
    }
}
