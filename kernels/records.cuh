// The records that live on the device and the scalars of each op: src/backend/params.rs field by field, where they are
// explained. constants.cuh checks every size and offset as it is compiled.
#pragma once

struct Row {
    u32 slot;
    u32 lane;
    u32 token;
    u32 position;
};

struct Place {
    u32 table;
    u32 position;
    u32 live;
    u32 token;
};

struct Extent {
    u32 n_rows;
    u32 n_logits;
};

struct PageCopy {
    u32 from;
    u32 to;
};

struct Slot {
    u32 last_id;
    u32 produced;
    u32 finish;
    u32 max_tokens;
    u32 lengths[N_LANES];
    u32 min_tokens;
    u32 n_stop_ids;
    u32 n_biases;
    u32 penalised;
    float alpha;
    float inverse_temperature;
    u32 top_k;
    u32 top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    u32 base_top_p;
    float base_min_p;
    u32 seed[2];
    u32 sample_index;
    u32 drew;
    u32 expert_only;
    u32 reserved[2];
    u32 stop_ids[MAX_STOP_IDS];
    u32 ring[RING];
};

struct Sample {
    u32 slot;
    u32 row_base;
    u32 row_expert;
    u32 row_anti;
};

struct TopEntry {
    u32 id;
    float z_base;
    float z_expert;
    float z_anti;
    float score;
};

struct StepRecord {
    u32 position;
    u32 chosen;
    u32 base_argmax;
    u32 combined_argmax;
    float logprob[4];
    u32 rank[4];
    float entropy[4];
    float kl_combined_base;
    float kl_expert_anti;
    float cross_entropy;
    float alpha;
    u32 n_top;
    u32 reserved[3];
    TopEntry top[MAX_RECORD_TOP];
};

struct EmbedParams {
    u32 cap;
    u32 d_model;
    u32 max_pages;
    u32 reserved;
    float scale[MAX_MEMBERS];
};

struct NormMatmulParams {
    u32 cap_in;
    u32 cap_out;
    u32 n_in;
    u32 n_out;
    float eps[MAX_MEMBERS];
    float softcap;
    float scale;
};

struct PageParams {
    u32 page_words;
    u32 page_tokens;
    u32 dtype;
    u32 max_pages;
};

struct CopyPagesParams {
    u32 page_words;
    u32 reserved[3];
};

struct RopeAppendParams {
    PageParams page;
    u32 cap;
    u32 n_heads;
    u32 n_kv_heads;
    u32 head_dim;
    u32 max_positions;
    u32 wide_norm;
    float eps[MAX_MEMBERS];
    float q_beta[MAX_MEMBERS];
    u32 q_length[MAX_MEMBERS];
};

struct AttentionParams {
    PageParams page;
    u32 cap;
    u32 n_heads;
    u32 n_kv_heads;
    u32 head_dim;
    float scale;
    float softcap;
    u32 window[MAX_MEMBERS];
};

struct MatmulAddParams {
    u32 cap;
    u32 n_in;
    u32 n_out;
    float scale;
};

struct NormAddParams {
    u32 cap;
    u32 d_model;
    float eps[MAX_MEMBERS];
};

struct NormGateUpParams {
    u32 cap;
    u32 n_in;
    u32 n_out;
    u32 activation;
    float eps[MAX_MEMBERS];
};

struct CombineSampleParams {
    u32 n_ids;
    u32 strides[3];
    u32 mask_words;
    u32 has_counts;
    u32 reserved[2];
};

struct RecordParams {
    u32 n_ids;
    u32 strides[3];
    u32 mask_words;
    u32 n_top;
    u32 reserved[2];
};
