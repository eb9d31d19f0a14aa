//! What of the denoisers runs outside the step loop, and how much work that is, against numbers counted by hand.

use crate::common::{Scratch, fixture};
use aquatint::raw::format::Packed;
use aquatint::raw::program::{Dims, Rate, Role};
use aquatint::raw::work::{Group, groups};
use packer::emit::{Options, pack};
use packer::source::donors::Donors;

/// An image or video and what guidance leads it away from, in one call.
const BOTH: usize = 2;

/// The groups of the denoiser of a tiny model: two samples, two conditions.
fn work(scratch: &Scratch, model: &str, [height, width]: [usize; 2], tokens: usize, frames: usize) -> Vec<Group> {
    let output = scratch.path("m.aqt");
    let of_file = || Donors {
        autoencoder: Some(fixture("pixart/alpha/vae")),
        text: vec![fixture("pixart/alpha")],
        without_text: true,
    };
    let donors = if model.ends_with(".pth") { of_file() } else { Donors::default() };
    let options = Options { model: fixture(model), donors, output: output.clone(), ..Options::default() };
    pack(&options, &mut |_| ()).unwrap();
    let packed = Packed::open(&output).unwrap();
    let types: Vec<_> = packed.tensors().iter().map(|t| t.ty()).collect();
    let dims = Dims { batch: BOTH, conditions: BOTH, height, width, tokens, frames };
    groups(packed.program(Role::Denoiser).unwrap(), &types, &dims).unwrap()
}

/// Operations of a product of so many rows.
fn product(rows: usize, inputs: usize, outputs: usize) -> u64 {
    2 * (rows * inputs * outputs) as u64
}

/// Of the groups at `rate`, those that do products: path, ops and operations, in the order of their paths.
fn at(groups: &[Group], rate: Rate) -> Vec<(String, usize, u64)> {
    let of_rate = groups.iter().filter(|group| group.rate == rate && group.flops > 0);
    let mut list: Vec<_> = of_rate.map(|group| (group.path.clone(), group.ops, group.flops)).collect();
    list.sort();
    list
}

fn total(groups: &[Group], rate: Rate) -> u64 {
    groups.iter().filter(|group| group.rate == rate).map(|group| group.flops).sum()
}

fn check(groups: &[Group], rate: Rate, expected: &[(&str, usize, u64)]) {
    let mut expected: Vec<_> = expected.iter().map(|&(path, ops, flops)| (path.to_owned(), ops, flops)).collect();
    expected.sort();
    assert_eq!(at(groups, rate), expected, "{rate:?}");
}

/// Modulations of all blocks, which are most of a DiT's weights.
#[test]
fn dit_keeps_no_modulation_in_its_steps() {
    let (d, blocks, patches) = (32, 2, 16);
    let groups = work(&Scratch::new("hoist-dit"), "dit/d2", [8, 8], 1, 1);
    check(&groups, Rate::Prompt, &[]);
    let time = "transformer_blocks.*.norm1.emb.timestep_embedder";
    check(
        &groups,
        Rate::Step,
        &[
            (&format!("{time}.linear_1"), 1, product(BOTH, 256, d)),
            (&format!("{time}.linear_2"), 1, product(BOTH, d, d)),
            ("transformer_blocks.*.norm1.linear", blocks, blocks as u64 * product(BOTH, d, 6 * d)),
            ("proj_out_1", 1, product(BOTH, d, 2 * d)),
        ],
    );
    // Queries, keys, values, result and the two layers of four times the width; scores and what they weigh.
    let rows = BOTH * patches;
    let block = product(rows, d, 12 * d) + 2 * product(rows, d, patches);
    let loop_ = product(rows, 16, d) + blocks as u64 * block + product(rows, d, 32);
    assert_eq!(total(&groups, Rate::Loop), loop_);
}

/// Operations at each rate of PixArt's parts with `d` features and `n` blocks that read `tokens` of 20 features.
fn of_pixart(groups: &[Group], tokens: usize, d: usize, n: usize) {
    let (rows, each) = (BOTH * tokens, n as u64);
    let keys = |name: &str| (format!("transformer_blocks.*.attn2.{name}"), n, each * product(rows, d, d));
    let (k, v) = (keys("to_k"), keys("to_v"));
    check(
        groups,
        Rate::Prompt,
        &[
            ("caption_projection.linear_1", 1, product(rows, 20, d)),
            ("caption_projection.linear_2", 1, product(rows, d, d)),
            (&k.0, k.1, k.2),
            (&v.0, v.1, v.2),
        ],
    );
    check(
        groups,
        Rate::Step,
        &[
            ("adaln_single.emb.timestep_embedder.linear_1", 1, product(BOTH, 256, d)),
            ("adaln_single.emb.timestep_embedder.linear_2", 1, product(BOTH, d, d)),
            ("adaln_single.linear", 1, product(BOTH, d, 6 * d)),
        ],
    );
    let hoisted = |path: &str, rate| groups.iter().any(|group| group.path == path && group.rate == rate);
    assert!(hoisted("pos_embed.pos_embed", Rate::Bind), "positions: {groups:?}");
}

/// What a block of PixArt does per call: as DiT's, and queries and result of what it reads of the caption.
fn pixart_block(rows: usize, d: usize, seen: usize, tokens: usize) -> u64 {
    product(rows, d, 12 * d) + product(rows, d, 2 * d) + 2 * product(rows, d, seen) + 2 * product(rows, d, tokens)
}

#[test]
fn pixart_reads_its_caption_once() {
    let (d, blocks, patches, tokens) = (24, 3, 12, 7);
    let groups = work(&Scratch::new("hoist-pixart"), "pixart/sigma", [6, 8], tokens, 1);
    of_pixart(&groups, tokens, d, blocks);
    let rows = BOTH * patches;
    let loop_ = product(rows, 16, d) + blocks as u64 * pixart_block(rows, d, patches, tokens) + product(rows, d, 32);
    assert_eq!(total(&groups, Rate::Loop), loop_);
}

/// Keys and values of the caption are not made for each frame, nor modulations.
#[test]
fn videos_share_what_their_frames_have_in_common() {
    let (tokens, frames, patches) = (7, 5, 16);
    let rows = BOTH * frames * patches;
    let (d, pairs) = (24, 2);
    let groups = work(&Scratch::new("hoist-latte"), "latte", [8, 8], tokens, frames);
    of_pixart(&groups, tokens, d, pairs);
    // The temporal block attends across frames, and reads no caption.
    let temporal = product(rows, d, 12 * d) + 2 * product(rows, d, frames);
    let pair = pixart_block(rows, d, patches, tokens) + temporal;
    let loop_ = product(rows, 16, d) + pairs as u64 * pair + product(rows, d, 32);
    assert_eq!(total(&groups, Rate::Loop), loop_);

    let (d, blocks) = (72, 2);
    let groups = work(&Scratch::new("hoist-stdit"), "stdit/stdit.pth", [8, 8], tokens, frames);
    of_pixart(&groups, tokens, d, blocks);
    // Attention across frames besides, without an MLP of its own.
    let across = product(rows, d, 4 * d) + 2 * product(rows, d, frames);
    let block = pixart_block(rows, d, patches, tokens) + across;
    assert_eq!(total(&groups, Rate::Loop), product(rows, 16, d) + blocks as u64 * block + product(rows, d, 32));
}

/// All that Hunyuan-DiT makes of its texts, and of texts and timestep together.
#[test]
fn hunyuan_keeps_texts_and_shifts_out_of_its_steps() {
    let (d, blocks, patches) = (16, 6, 12);
    // Tokens and features of both texts, and the vector of the second.
    let ([t, u], [a, b], pooled, inner) = ([5, 7], [12, 16], 10, 69);
    let groups = work(&Scratch::new("hoist-hunyuan"), "transformers/hunyuan", [6, 8], 1, 1);
    let n = blocks as u64;
    let keys = n * product(BOTH * (t + u), a, d);
    let pooler = "time_extra_emb.pooler";
    let extra = "time_extra_emb.extra_embedder";
    check(
        &groups,
        Rate::Prompt,
        &[
            ("text_embedder.linear_1", 1, product(BOTH * u, b, 4 * b)),
            ("text_embedder.linear_2", 1, product(BOTH * u, 4 * b, a)),
            // One query of all tokens and their mean; what makes them has the same path.
            (pooler, 5, 2 * product(BOTH, b, u + 1)),
            (&format!("{pooler}.q_proj"), 1, product(BOTH, b, b)),
            (&format!("{pooler}.k_proj"), 1, product(BOTH * (u + 1), b, b)),
            (&format!("{pooler}.v_proj"), 1, product(BOTH * (u + 1), b, b)),
            (&format!("{pooler}.c_proj"), 1, product(BOTH, b, pooled)),
            (&format!("{extra}.linear_1"), 1, product(BOTH, pooled, 4 * d)),
            (&format!("{extra}.linear_2"), 1, product(BOTH, 4 * d, d)),
            ("blocks.*.attn2.to_k", blocks, keys),
            ("blocks.*.attn2.to_v", blocks, keys),
        ],
    );
    check(
        &groups,
        Rate::Step,
        &[
            ("time_extra_emb.timestep_embedder.linear_1", 1, product(BOTH, 256, d)),
            ("time_extra_emb.timestep_embedder.linear_2", 1, product(BOTH, d, d)),
            ("blocks.*.norm1.linear", blocks, n * product(BOTH, d, d)),
            ("norm_out.linear", 1, product(BOTH, d, 2 * d)),
        ],
    );
    let rows = BOTH * patches;
    let attention = product(rows, d, 6 * d) + 2 * product(rows, d, patches) + 2 * product(rows, d, t + u);
    let block = attention + 2 * product(rows, d, inner);
    // Two of six blocks read what others left.
    let skips = 2 * product(rows, 2 * d, d);
    assert_eq!(total(&groups, Rate::Loop), product(rows, 16, d) + n * block + skips + product(rows, d, 32));
}
