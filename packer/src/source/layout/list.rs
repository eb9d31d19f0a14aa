//! Lists of tensors: names and axes of a network's layers, in diffusers' terms.

/// Tensors by name, with their axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct List(pub Vec<(String, Vec<usize>)>);

impl List {
    /// A weight without a bias at module `path`.
    pub fn weight(&mut self, path: &str, dims: &[usize]) {
        self.0.push((format!("{path}.weight"), dims.to_vec()));
    }

    /// A weight and a bias of as many elements as the weight has rows: linear layers, convolutions, norms.
    pub fn layer(&mut self, path: &str, dims: &[usize]) {
        self.weight(path, dims);
        self.0.push((format!("{path}.bias"), dims[..1].to_vec()));
    }

    /// A 3x3 convolution.
    pub fn conv(&mut self, path: &str, i: usize, o: usize) {
        self.layer(path, &[o, i, 3, 3]);
    }

    /// A residual block from `i` to `o` channels; `time` is the number of rows and columns of the projection of the
    /// timestep's embedding, if there is one.
    pub fn resnet(&mut self, path: &str, i: usize, o: usize, time: Option<[usize; 2]>) {
        self.layer(&format!("{path}.norm1"), &[i]);
        self.conv(&format!("{path}.conv1"), i, o);
        if let Some(time) = time {
            self.layer(&format!("{path}.time_emb_proj"), &time);
        }
        self.layer(&format!("{path}.norm2"), &[o]);
        self.conv(&format!("{path}.conv2"), o, o);
        if i != o {
            self.layer(&format!("{path}.conv_shortcut"), &[o, i, 1, 1]);
        }
    }

    /// Attention over all pixels of `c` channels.
    pub fn attention(&mut self, path: &str, c: usize) {
        self.layer(&format!("{path}.group_norm"), &[c]);
        for name in ["to_q", "to_k", "to_v", "to_out.0"] {
            self.layer(&format!("{path}.{name}"), &[c, c]);
        }
    }

    /// `depth` transformer blocks of `c` channels that read a context of `context` features. Projections in and out are
    /// matrices if `linear`, else 1x1 convolutions.
    pub fn transformer(&mut self, path: &str, c: usize, depth: usize, context: usize, linear: bool) {
        let square: &[usize] = if linear { &[c, c] } else { &[c, c, 1, 1] };
        self.layer(&format!("{path}.norm"), &[c]);
        self.layer(&format!("{path}.proj_in"), square);
        for block in 0..depth {
            let path = format!("{path}.transformer_blocks.{block}");
            for (attention, features) in [("attn1", c), ("attn2", context)] {
                self.weight(&format!("{path}.{attention}.to_q"), &[c, c]);
                self.weight(&format!("{path}.{attention}.to_k"), &[c, features]);
                self.weight(&format!("{path}.{attention}.to_v"), &[c, features]);
                self.layer(&format!("{path}.{attention}.to_out.0"), &[c, c]);
            }
            self.layer(&format!("{path}.ff.net.0.proj"), &[8 * c, c]);
            self.layer(&format!("{path}.ff.net.2"), &[c, 4 * c]);
            for norm in ["norm1", "norm2", "norm3"] {
                self.layer(&format!("{path}.{norm}"), &[c]);
            }
        }
        self.layer(&format!("{path}.proj_out"), square);
    }
}
