//! Named tensors -> device weights: joined (q, k, v), stacked (twins), uploaded once.

use crate::backend::params::MAX_MEMBERS;
use crate::backend::{Activation, Backend, Dtype, MatrixBytes, MatrixSpec};
use crate::checkpoint::{Checkpoint, EMBEDDING, HEAD, ModelConfig, NormNames, Norms, QkNorm, Rope, Scales, widen};
use crate::{Error, Result};
use std::ops::Range;

/// What two checkpoints must share to be one launch. Vocabulary width, eps, rope, windows, the embedding's factor and
/// tying may differ.
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
    /// Where a layer has norms.
    pub norms: Norms,
    /// Norms of q and k.
    pub qk_norm: QkNorm,
    /// Factors and soft caps.
    pub scales: Scales,
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
            norms: config.norms,
            qk_norm: config.qk_norm,
            scales: config.scales,
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
    /// `[members][d_model]`: the norm before attention.
    pub attention_gain: Option<B::Buf>,
    /// `[qkv_width][d_model]`: q, k, v.
    pub qkv: B::Matrix,
    /// `[members][qkv_width]`.
    pub qkv_bias: Option<B::Buf>,
    /// `[members][head_dim]`, or as wide as q.
    pub q_gain: Option<B::Buf>,
    /// `[members][head_dim]`, or as wide as k.
    pub k_gain: Option<B::Buf>,
    /// Which of the stack's rotary tables; absent: no rotary positions.
    pub rotary: Option<usize>,
    /// Positions seen, per member. 0: all.
    pub window: [u32; MAX_MEMBERS],
    /// `[d_model][n_heads * head_dim]`.
    pub output: B::Matrix,
    /// `[members][d_model]`.
    pub output_bias: Option<B::Buf>,
    /// `[members][d_model]`: the norm after attention.
    pub attended_gain: Option<B::Buf>,
    /// `[members][d_model]`: the norm before the feed-forward.
    pub ffn_gain: Option<B::Buf>,
    /// `[d_ff][d_model]`.
    pub gate: B::Matrix,
    /// `[d_ff][d_model]`.
    pub up: B::Matrix,
    /// `[d_model][d_ff]`.
    pub down: B::Matrix,
    /// `[members][d_model]`: the norm after the feed-forward.
    pub fed_gain: Option<B::Buf>,
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
    /// `[members][max_positions][head_dim / 2]` of (cos, sin), one for each set of rotary positions that the members
    /// have in a layer.
    pub rotary: Vec<B::Buf>,
    /// Positions in each of `rotary`.
    pub max_positions: usize,
    /// eps of every norm, per member.
    pub eps: [f32; MAX_MEMBERS],
    /// Factor of the embedding, per member.
    pub embedding_scale: [f32; MAX_MEMBERS],
    /// Factor of q that grows with the position: beta, and length.
    pub q_growth: ([f32; MAX_MEMBERS], [u32; MAX_MEMBERS]),
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
        let head_name = |m: &Checkpoint| vec![if m.config.tied { EMBEDDING } else { HEAD }.into()];
        let head = if tied { None } else { Some(loader.matrix(head_name, n_vocab)?) };
        let rotary = RotarySets::of(members);
        let layer = |(index, rotary): (usize, &Option<usize>)| loader.layer(&shape, index, *rotary);
        let layers = rotary.of_layer.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let growth =
            loader.each(|m| m.config.q_growth.map_or((0.0, 1), |growth| (growth.beta, growth.length)), (0.0, 1));
        Ok(Self {
            n_members: members.len(),
            n_vocab,
            embedding,
            head,
            layers,
            final_gain: loader.gain(shape.d_model, "model.norm.weight".into())?,
            rotary: loader.rotary(&rotary, max_positions, shape.head_dim)?,
            max_positions,
            eps: loader.each(|m| m.config.norm_eps, 0.0),
            embedding_scale: loader.each(|m| m.config.embedding_scale, 0.0),
            q_growth: (growth.map(|(beta, _)| beta), growth.map(|(_, length)| length)),
            shape,
        })
    }
}

/// The sets of rotary positions that members have in a layer, a table for each, and which of them a layer has.
pub(crate) struct RotarySets {
    sets: Vec<Vec<Option<Rope>>>,
    of_layer: Vec<Option<usize>>,
}

impl RotarySets {
    /// Of members with equally many layers.
    pub(crate) fn of(members: &[&Checkpoint]) -> Self {
        let mut sets: Vec<Vec<Option<Rope>>> = Vec::new();
        let of_layer = (0..members[0].config.n_layers).map(|layer| {
            let set: Vec<Option<Rope>> = members.iter().map(|m| m.config.layers[layer].rope).collect();
            set.iter().any(Option::is_some).then(|| {
                sets.iter().position(|known| *known == set).unwrap_or_else(|| {
                    sets.push(set);
                    sets.len() - 1
                })
            })
        });
        let of_layer = of_layer.collect();
        Self { sets, of_layer }
    }

    /// Words of all tables.
    pub(crate) fn words(&self, max_positions: usize, head_dim: usize) -> usize {
        self.sets.iter().map(Vec::len).sum::<usize>() * max_positions * head_dim
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    members: &'a [&'a Checkpoint],
}

impl<B: Backend> Loader<'_, B> {
    /// A setting of each member, and something where there is none.
    fn each<T: Copy>(&self, of: impl Fn(&Checkpoint) -> T, none: T) -> [T; MAX_MEMBERS] {
        std::array::from_fn(|i| self.members.get(i).map_or(none, |m| of(m)))
    }

    fn layer(&self, shape: &LayerShape, index: usize, rotary: Option<usize>) -> Result<Layer<B>> {
        let (d, ff, qkv) = (shape.d_model, shape.d_ff, shape.qkv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let attention = |kind: &str| ["q", "k", "v"].map(|p| name(&format!("self_attn.{p}_proj.{kind}"))).to_vec();
        let matrix = |part: &str, n_rows| self.matrix(|_| vec![name(part)], n_rows);
        let norms = NormNames::of(shape.norms);
        let gain = |part: Option<&str>| part.map(|part| self.gain(d, name(part))).transpose();
        let head_gain = |part: &str, n_heads: usize| {
            let n_heads = match shape.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::PerHead => 1,
                QkNorm::Wide => n_heads,
            };
            self.gain(n_heads * shape.head_dim, name(part)).map(Some)
        };
        // One launch multiplies both, so they are of one type.
        let [gate, up] = ["mlp.gate_proj.weight", "mlp.up_proj.weight"].map(name);
        let ffn_dtype = self.common_dtype(&vec![vec![gate.clone(), up.clone()]; self.members.len()])?;
        let ffn_matrix = |name: String| self.matrix_of(&vec![vec![name]; self.members.len()], ffn_dtype, ff);
        let output_bias = |m: &Checkpoint| m.config.o_bias.then(|| vec![name("self_attn.o_proj.bias")]);
        Ok(Layer {
            attention_gain: gain(norms.before_attention)?,
            qkv: self.matrix(|_| attention("weight"), qkv)?,
            qkv_bias: self.bias("qkv bias", qkv, |m| m.config.qkv_bias.then(|| attention("bias")))?,
            q_gain: head_gain("self_attn.q_norm.weight", shape.n_heads)?,
            k_gain: head_gain("self_attn.k_norm.weight", shape.n_kv_heads)?,
            rotary,
            window: self.each(|m| m.config.layers[index].window, 0),
            output: matrix("self_attn.o_proj.weight", d)?,
            output_bias: self.bias("output bias", d, output_bias)?,
            attended_gain: gain(norms.after_attention)?,
            ffn_gain: gain(norms.before_ffn)?,
            gate: ffn_matrix(gate)?,
            up: ffn_matrix(up)?,
            down: matrix("mlp.down_proj.weight", d)?,
            fed_gain: gain(norms.after_ffn)?,
        })
    }

    /// The tensors that `names` gives for each member, joined by rows, zero-padded to `n_rows`, members stacked.
    fn matrix(&self, names: impl Fn(&Checkpoint) -> Vec<String>, n_rows: usize) -> Result<B::Matrix> {
        let lists: Vec<Vec<String>> = self.members.iter().map(|m| names(m)).collect();
        self.matrix_of(&lists, self.common_dtype(&lists)?, n_rows)
    }

    /// As [`Self::matrix`], of the tensors that `lists` names for each member, stored as `dtype`.
    fn matrix_of(&self, lists: &[Vec<String>], dtype: Dtype, n_rows: usize) -> Result<B::Matrix> {
        let n_cols = info(self.members[0], &lists[0][0])?.shape[1];
        let spec = MatrixSpec { dtype, n_rows, n_cols };
        let joined = self.members.iter().zip(lists);
        let joined = joined.map(|(&member, names)| Ok(Joined { member, parts: parts(member, names, dtype)?, dtype }));
        let joined = joined.collect::<Result<Vec<_>>>()?;
        let members: Vec<&dyn MatrixBytes> = joined.iter().map(|joined| joined as &dyn MatrixBytes).collect();
        self.backend.matrix(spec, &members)
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

    /// The gain of a norm, which some families store less 1.
    fn gain(&self, width: usize, name: String) -> Result<B::Buf> {
        let mut stacked = Vec::with_capacity(self.members.len() * width);
        for member in self.members {
            let one = if member.config.gains_less_one { 1.0 } else { 0.0 };
            stacked.extend(member.read_f32(&name)?.into_iter().map(|gain| one + gain));
        }
        self.upload("norm gain", &stacked)
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

    /// One buffer for each set.
    fn rotary(&self, sets: &RotarySets, max_positions: usize, head_dim: usize) -> Result<Vec<B::Buf>> {
        let upload = |set: &Vec<Option<Rope>>| {
            let rows = set.iter().flat_map(|&rope| rotary_rows(rope, max_positions, head_dim));
            self.upload("rotary table", &rows.collect::<Vec<f32>>())
        };
        sets.sets.iter().map(upload).collect()
    }

    fn upload(&self, label: &'static str, data: &[f32]) -> Result<B::Buf> {
        let buf = self.backend.alloc(label, data.len())?;
        self.backend.upload(&buf, 0, bytemuck::cast_slice(data))?;
        Ok(buf)
    }
}

/// (cos, sin) of each position and pair; without rotary positions the turn that turns nothing.
fn rotary_rows(rope: Option<Rope>, max_positions: usize, head_dim: usize) -> Vec<f32> {
    let Some(rope) = rope else { return [1.0, 0.0].repeat(max_positions * head_dim / 2) };
    let (frequencies, length) = (rope.inverse_frequencies(head_dim), rope.attention_factor());
    let turn = |angle: f64| [(length * angle.cos()) as f32, (length * angle.sin()) as f32];
    let row = |position| frequencies.iter().flat_map(move |frequency| turn(position as f64 * frequency));
    (0..max_positions).flat_map(row).collect()
}

fn info<'a>(member: &'a Checkpoint, name: &str) -> Result<&'a crate::checkpoint::TensorInfo> {
    member.tensor(name).ok_or_else(|| Error::tensor(&member.name, name, "missing"))
}

/// Tensors one below the other, then zeros: a matrix as a backend reads it.
struct Joined<'a> {
    member: &'a Checkpoint,
    /// Names, and where each stands in the matrix, in bytes.
    parts: Vec<(&'a str, Range<usize>)>,
    /// Type of the matrix: the tensors' own, or f32.
    dtype: Dtype,
}

fn parts<'a>(member: &Checkpoint, names: &'a [String], dtype: Dtype) -> Result<Vec<(&'a str, Range<usize>)>> {
    let mut end = 0;
    let part = |name: &'a String| {
        let start = end;
        end += info(member, name)?.shape.iter().product::<usize>() * dtype.bytes();
        Ok((name.as_str(), start..end))
    };
    names.iter().map(part).collect()
}

impl MatrixBytes for Joined<'_> {
    fn is_matrix_of(&self, n_bytes: usize) -> bool {
        self.parts.iter().all(|(_, span)| span.end <= n_bytes)
    }

    fn copy_to(&self, offset: usize, mut bytes: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for (name, span) in self.parts.iter().filter(|(_, span)| span.end > offset) {
            let (piece, rest) = bytes.split_at_mut(bytes.len().min(span.end - at));
            if !piece.is_empty() {
                self.read(name, at - span.start, piece)?;
            }
            at += piece.len();
            bytes = rest;
        }
        bytes.fill(0);
        Ok(())
    }
}

impl Joined<'_> {
    /// A piece of a tensor from byte `offset` of its widened form on.
    fn read(&self, name: &str, offset: usize, piece: &mut [u8]) -> Result<()> {
        let stored = info(self.member, name)?.dtype;
        if stored == self.dtype {
            return self.member.read_into(name, offset, piece);
        }
        let narrow = |n_bytes: usize| n_bytes / self.dtype.bytes() * stored.bytes();
        let mut bytes = vec![0; narrow(piece.len())];
        self.member.read_into(name, narrow(offset), &mut bytes)?;
        piece.copy_from_slice(bytemuck::cast_slice(&widen(stored, &bytes)));
        Ok(())
    }
}
