//! Named tensors -> device weights: joined (q, k, v), stacked (twins), uploaded once.

use crate::backend::{Activation, Backend, Dtype, MatrixSpec};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::{Error, Result};

/// What two checkpoints must share to be one launch. Vocabulary width, eps, rope and tying may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerShape {
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub d_ff: usize,
    /// Its activation.
    pub activation: Activation,
}

impl LayerShape {
    /// The shape that a configuration asks for.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            n_layers: config.n_layers,
            d_model: config.d_model,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            d_ff: config.d_ff,
            activation: config.activation,
        }
    }

    /// Width of the joined q, k and v.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Width of a row of the widest activation.
    pub fn row_words(&self) -> usize {
        self.qkv_width().max(self.d_ff).max(self.d_model)
    }
}

/// One layer's weights, members stacked.
pub struct Layer<B: Backend> {
    /// `[members][d_model]`.
    pub attention_gain: B::Buf,
    /// `[qkv_width][d_model]`: q, k, v.
    pub qkv: B::Matrix,
    /// `[members][qkv_width]`.
    pub qkv_bias: Option<B::Buf>,
    /// `[d_model][n_heads * head_dim]`.
    pub output: B::Matrix,
    /// `[members][d_model]`.
    pub output_bias: Option<B::Buf>,
    /// `[members][d_model]`.
    pub ffn_gain: B::Buf,
    /// `[d_ff][d_model]`.
    pub gate: B::Matrix,
    /// `[d_ff][d_model]`.
    pub up: B::Matrix,
    /// `[d_model][d_ff]`.
    pub down: B::Matrix,
}

/// One checkpoint, or two of equal shape stacked, on the device.
pub struct Stack<B: Backend> {
    /// Common shape.
    pub shape: LayerShape,
    /// Weight sets stacked.
    pub n_members: usize,
    /// Width of a logits row: the widest member's, the others zero-padded.
    pub n_vocab: usize,
    /// `[n_vocab][d_model]`.
    pub embedding: B::Matrix,
    /// `[n_vocab][d_model]`; absent where every member is tied.
    pub head: Option<B::Matrix>,
    /// One per layer.
    pub layers: Vec<Layer<B>>,
    /// `[members][d_model]`.
    pub final_gain: B::Buf,
    /// `[members][max_positions][head_dim / 2]` of (cos, sin).
    pub rotary: B::Buf,
    /// Positions in `rotary`.
    pub max_positions: usize,
    /// eps of every norm, per member.
    pub eps: [f32; 2],
}

impl<B: Backend> Stack<B> {
    /// Reads, joins and uploads. `members` share a [`LayerShape`]; positions up to `max_positions` can be computed.
    pub fn load(backend: &B, members: &[&Checkpoint], max_positions: usize) -> Result<Self> {
        let loader = Loader { backend, members };
        let shape = LayerShape::of(&members[0].config);
        assert!(members.iter().all(|m| LayerShape::of(&m.config) == shape), "twins have equal layer shapes");
        let n_vocab = members.iter().map(|m| m.config.n_vocab).max().expect("at least one member");
        let embedding = loader.matrix(|_| vec![EMBEDDING.into()], n_vocab)?;
        let tied = members.iter().all(|m| m.config.tied);
        let head_name = |m: &Checkpoint| vec![if m.config.tied { EMBEDDING } else { "lm_head.weight" }.into()];
        let head = if tied { None } else { Some(loader.matrix(head_name, n_vocab)?) };
        let layers = (0..shape.n_layers).map(|i| loader.layer(&shape, i)).collect::<Result<_>>()?;
        Ok(Self {
            n_members: members.len(),
            n_vocab,
            embedding,
            head,
            layers,
            final_gain: loader.vector("final norm", shape.d_model, |_| Some(vec!["model.norm.weight".into()]))?,
            rotary: loader.rotary(max_positions, shape.head_dim)?,
            max_positions,
            eps: std::array::from_fn(|i| members.get(i).map_or(0.0, |m| m.config.norm_eps)),
            shape,
        })
    }
}

/// Name of the embedding, whose type stands for the checkpoint's.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

struct Loader<'a, B: Backend> {
    backend: &'a B,
    members: &'a [&'a Checkpoint],
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, shape: &LayerShape, index: usize) -> Result<Layer<B>> {
        let (d, ff, qkv) = (shape.d_model, shape.d_ff, shape.qkv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let attention = |kind: &str| ["q", "k", "v"].map(|p| name(&format!("self_attn.{p}_proj.{kind}"))).to_vec();
        let matrix = |part: &str, n_rows| self.matrix(|_| vec![name(part)], n_rows);
        let gain = |part: &str| self.vector("norm gain", d, |_| Some(vec![name(part)]));
        let output_bias = |m: &Checkpoint| m.config.o_bias.then(|| vec![name("self_attn.o_proj.bias")]);
        Ok(Layer {
            attention_gain: gain("input_layernorm.weight")?,
            qkv: self.matrix(|_| attention("weight"), qkv)?,
            qkv_bias: self.bias("qkv bias", qkv, |m| m.config.qkv_bias.then(|| attention("bias")))?,
            output: matrix("self_attn.o_proj.weight", d)?,
            output_bias: self.bias("output bias", d, output_bias)?,
            ffn_gain: gain("post_attention_layernorm.weight")?,
            gate: matrix("mlp.gate_proj.weight", ff)?,
            up: matrix("mlp.up_proj.weight", ff)?,
            down: matrix("mlp.down_proj.weight", d)?,
        })
    }

    /// The tensors that `names` gives for each member, joined by rows, zero-padded to `n_rows`, members stacked.
    fn matrix(&self, names: impl Fn(&Checkpoint) -> Vec<String>, n_rows: usize) -> Result<B::Matrix> {
        let lists: Vec<Vec<String>> = self.members.iter().map(|m| names(m)).collect();
        let dtype = self.common_dtype(&lists)?;
        let n_cols = info(self.members[0], &lists[0][0])?.shape[1];
        let spec = MatrixSpec { dtype, n_rows, n_cols };
        let mut joined = Vec::with_capacity(self.members.len());
        for (member, list) in self.members.iter().zip(&lists) {
            let mut bytes = Vec::with_capacity(spec.bytes());
            for name in list {
                append(member, name, dtype, &mut bytes)?;
            }
            bytes.resize(spec.bytes(), 0);
            joined.push(bytes);
        }
        let views: Vec<&[u8]> = joined.iter().map(Vec::as_slice).collect();
        self.backend.matrix(spec, &views)
    }

    /// The stored type, where all tensors agree; else f32, which holds each of the others exactly.
    fn common_dtype(&self, lists: &[Vec<String>]) -> Result<Dtype> {
        let mut common = None;
        for (member, name) in self.members.iter().zip(lists).flat_map(|(m, list)| list.iter().map(move |n| (m, n))) {
            let dtype = info(member, name)?.dtype;
            if *common.get_or_insert(dtype) != dtype {
                return Ok(Dtype::F32);
            }
        }
        Ok(common.expect("a matrix is made of at least one tensor"))
    }

    /// f32 vectors of width `width`, members stacked; a member without names gets zeros.
    fn vector(
        &self,
        label: &'static str,
        width: usize,
        names: impl Fn(&Checkpoint) -> Option<Vec<String>>,
    ) -> Result<B::Buf> {
        let mut stacked = Vec::with_capacity(self.members.len() * width);
        for (index, member) in self.members.iter().enumerate() {
            for name in names(member).iter().flatten() {
                stacked.extend(member.read_f32(name)?);
            }
            stacked.resize((index + 1) * width, 0.0f32);
        }
        self.upload(label, &stacked)
    }

    /// As [`Self::vector`], absent where no member has it.
    fn bias(
        &self,
        label: &'static str,
        width: usize,
        names: impl Fn(&Checkpoint) -> Option<Vec<String>>,
    ) -> Result<Option<B::Buf>> {
        let used = self.members.iter().any(|m| names(m).is_some());
        used.then(|| self.vector(label, width, names)).transpose()
    }

    fn rotary(&self, max_positions: usize, head_dim: usize) -> Result<B::Buf> {
        let mut table = Vec::with_capacity(self.members.len() * max_positions * head_dim);
        for member in self.members {
            let frequencies = member.config.rope.inverse_frequencies(head_dim);
            for position in 0..max_positions {
                for frequency in &frequencies {
                    let angle = position as f64 * frequency;
                    table.extend([angle.cos() as f32, angle.sin() as f32]);
                }
            }
        }
        self.upload("rotary table", &table)
    }

    fn upload(&self, label: &'static str, data: &[f32]) -> Result<B::Buf> {
        let buf = self.backend.alloc(label, data.len())?;
        self.backend.upload(&buf, 0, bytemuck::cast_slice(data))?;
        Ok(buf)
    }
}

fn info<'a>(member: &'a Checkpoint, name: &str) -> Result<&'a crate::checkpoint::TensorInfo> {
    member.tensor(name).ok_or_else(|| Error::tensor(&member.name, name, "missing"))
}

/// Appends a tensor's bytes, widened to f32 where `dtype` asks for it.
fn append(member: &Checkpoint, name: &str, dtype: Dtype, bytes: &mut Vec<u8>) -> Result<()> {
    if info(member, name)?.dtype == dtype {
        bytes.extend(member.read(name)?);
    } else {
        bytes.extend_from_slice(bytemuck::cast_slice(&member.read_f32(name)?));
    }
    Ok(())
}
