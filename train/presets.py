"""Runs by name: a demonstration, a small family for a CPU, and the contest systems to reproduce.

Every number of a contest system is that of its pull request's script (#N, openai/parameter-golf).
Parts of the model that the family gained only later are off.
"""

from __future__ import annotations

from dataclasses import replace

from .model import GPTConfig
from .settings import (
    AveragingSettings,
    BatchSettings,
    OptimizerSettings,
    PackSettings,
    QATSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)

DEFAULT = "demo"
CONTEST_CAP = 16_000_000
CONTEST_SECONDS = 600.0

# The baseline of March 17: 9 layers, Muon from momentum 0.85 to 0.95, no weight decay, no average.
BASELINE = TrainConfig(
    model=GPTConfig(
        vocab_size=1024,
        num_layers=9,
        model_dim=512,
        num_heads=8,
        num_kv_heads=4,
        mlp_mult=2.0,
        orthogonal_init=False,
    ),
    batch=BatchSettings(sequence=1024, tokens=524_288),
    optimizer=OptimizerSettings(),
    schedule=ScheduleSettings(max_wallclock=CONTEST_SECONDS, warmdown=1200),
    qat=QATSettings(formats={"blocks.*.weight": "int8.row", "embeddings": "int8.row"}),
    pack=PackSettings(cap=CONTEST_CAP),
    run=RunSettings(eval_every=1000),
)

# What the 11-layer records of March 20 to 25 share. Every value and the line of the script that
# sets it is a row of docs/presets.md; where a script and its thread differ, the script's is taken.
ELEVEN_LAYERS = GPTConfig(
    vocab_size=1024,
    num_layers=11,
    model_dim=512,
    num_heads=8,
    num_kv_heads=4,
    mlp_mult=3.0,
    smear_gate=True,
    bigram_vocab_size=2048,
    bigram_dim=128,
    scaled_projections=True,
)
ELEVEN_LAYERS_OPTIMIZER = OptimizerSettings(
    matrix_lr=0.025,
    matrix_weight_decay=0.04,
    momentum=0.99,
    momentum_start=0.92,
    momentum_warmup=1500,
    embedding_lr=0.035,
    scalar_lr=0.025,
    weight_decay=0.04,
    grad_clip=0.3,
)
ELEVEN_LAYERS_RUN = TrainConfig(
    model=ELEVEN_LAYERS,
    # An eighth of the step: the scripts accumulate 8 / processes times.
    batch=BatchSettings(sequence=2048, tokens=786_432, micro_tokens=98_304),
    optimizer=ELEVEN_LAYERS_OPTIMIZER,
    schedule=ScheduleSettings(max_wallclock=CONTEST_SECONDS, warmdown=3500, priming_steps=20),
    pack=PackSettings(cap=CONTEST_CAP),
    run=RunSettings(eval_every=1000, stride=64),
)
INT8 = "int8.row+quantile@0.9999984"  # what all three do with tables that have no other format

# #339: Backout, int6 after training, plain SWA.
BACKOUT_INT6 = replace(
    ELEVEN_LAYERS_RUN,
    model=replace(ELEVEN_LAYERS, bigram_vocab_size=4096, backout=True),
    schedule=replace(ELEVEN_LAYERS_RUN.schedule, iterations=9000, warmdown=3000),
    averaging=AveragingSettings(swa_every=200, swa_below=0.5),
    pack=PackSettings(
        cap=CONTEST_CAP,
        formats={
            "blocks.*.weight": "int6.row",
            "tok_emb.weight": INT8,
            "bigram.embed.weight": INT8,
            "bigram.proj.weight": "fp16",  # the script quantizes above 65,536 weights
        },
    ),
)

# #372: XSA on the last 4 layers, EMA, int6 attention and int5 MLP trained for from the start.
INT6_INT5MLP = {
    "blocks.*.attn.*.weight": "int6.row",
    "blocks.*.mlp.*.weight": "int5.row",
    "tok_emb.weight": "fp16",
    "late-k": "fp16",
}
XSA4_EMA_INT5MLP = replace(
    ELEVEN_LAYERS_RUN,
    model=replace(
        ELEVEN_LAYERS, rope_base=500_000.0, rope_train_length=0, bigram_dim=64, xsa_last_n=4
    ),
    batch=replace(ELEVEN_LAYERS_RUN.batch, tokens=524_288, micro_tokens=65_536),
    optimizer=OptimizerSettings(
        matrix_lr=0.02, matrix_weight_decay=0.04, embedding_lr=0.03, scalar_lr=0.02
    ),
    schedule=replace(ELEVEN_LAYERS_RUN.schedule, warmdown=2000, warmdown_floor=0.1),
    averaging=AveragingSettings(ema_decay=0.997),
    qat=QATSettings(mode="on", formats=INT6_INT5MLP),
    pack=PackSettings(
        cap=CONTEST_CAP,
        # The thread has bigram in fp16; the script's name filter makes it int8 and float32.
        formats={**INT6_INT5MLP, "bigram.*.weight": "fp32", "bigram.embed.weight": INT8},
    ),
)

# #569: VRL, LeakyReLU(0.5)², XSA everywhere, value embeddings, late QAT; rounded by full GPTQ, and
# pruned, when packed.
QAT_INT6 = "int6.row+quantile@0.9995"
GPTQ_INT6 = "int6.row+percentile-rounded+gptq"
PERCENTILE_INT6 = "int6.row+percentile-matrix"  # tables have no Hessian there
VRL_LEAKY_GPTQ = replace(
    ELEVEN_LAYERS_RUN,
    model=replace(
        ELEVEN_LAYERS,
        activation="leaky_relu_squared",
        rope_dims=16,
        ln_scale=True,
        xsa_last_n=11,
        resid_mix_phase=True,
        value_residual=True,
        value_residual_init=0.0,  # the thread's -1.5 is of a later script by another author
        value_embedding_dim=128,
        value_embedding_layers=(9, 10),
    ),
    schedule=replace(ELEVEN_LAYERS_RUN.schedule, calibration_reserve=14.0),
    averaging=AveragingSettings(ema_decay=0.997, swa_every=50, swa_below=0.2),
    qat=QATSettings(
        mode="late",
        late_below=0.15,
        formats={
            "blocks.*.weight": QAT_INT6,
            "bigram.proj.weight": QAT_INT6,
            "ve_shared.proj.weight": QAT_INT6,
        },
    ),
    pack=PackSettings(
        cap=CONTEST_CAP,
        # The thread has projections in int6 and tables in int8. The script quantizes above 65,536
        # weights, so the projections are not, and its categories make the two tables int6.
        formats={
            "blocks.*.weight": GPTQ_INT6,
            "bigram.embed.weight": PERCENTILE_INT6,
            "ve_shared.embed.weight": PERCENTILE_INT6,
            "bigram.proj.weight": "fp16",
            "ve_shared.proj.weight": "fp16",
            "tok_emb.weight": INT8,
        },
        prune_codes=0.02,
        calibration_tokens=256 * 98_304,  # as many of them as the reserve allows
    ),
    run=replace(ELEVEN_LAYERS_RUN.run, seed=42, eval_every=500),
)

# The 11-layer family at a size that a CPU trains in minutes.
SMALL_6L = TrainConfig(
    model=GPTConfig(
        vocab_size=1024,
        num_layers=6,
        model_dim=256,
        num_heads=8,
        num_kv_heads=4,
        mlp_mult=3.0,
        rope_dims=16,
        xsa_last_n=2,
        ln_scale=True,
        smear_gate=True,
        bigram_vocab_size=2048,
        bigram_dim=64,
        value_embedding_dim=64,
        value_embedding_layers=(4, 5),
    ),
    batch=BatchSettings(sequence=256, tokens=4096, micro_tokens=2048, order="coprime"),
    optimizer=OptimizerSettings(
        matrix_lr=0.02,
        matrix_weight_decay=0.04,
        momentum=0.95,
        momentum_start=0.85,
        momentum_warmup=100,
        embedding_lr=0.01,
        head_lr=0.01,
        scalar_lr=0.01,
        grad_clip=1.0,
    ),
    schedule=ScheduleSettings(iterations=1000, lr_warmup=10, warmdown=400),
    averaging=AveragingSettings(ema_decay=0.99, swa_every=10, swa_below=0.2),
    qat=QATSettings(formats={"blocks.*.weight": "int6.row", "embeddings": "int8.row"}),
    run=RunSettings(eval_every=200),
)

# What `packer demo` trains: minutes on two cores, with late QAT. In float32, which every CPU
# multiplies at full speed, and in which a seed gives the same weights whether or not it knows
# bfloat16.
DEMO = replace(
    SMALL_6L,
    model=replace(
        SMALL_6L.model,
        num_layers=4,
        model_dim=192,
        num_heads=6,
        num_kv_heads=3,
        xsa_last_n=1,
        bigram_vocab_size=1024,
        value_embedding_dim=0,
        value_embedding_layers=(),
    ),
    batch=BatchSettings(sequence=256, tokens=2048, order="coprime"),
    optimizer=replace(
        SMALL_6L.optimizer, matrix_lr=0.035, embedding_lr=0.025, head_lr=0.025, scalar_lr=0.02
    ),
    schedule=ScheduleSettings(iterations=800, lr_warmup=10, warmdown=400),
    averaging=AveragingSettings(ema_decay=0.98, swa_every=5, swa_below=0.2),
    qat=QATSettings(
        mode="late",
        late_below=0.3,
        formats={"blocks.*.weight": "int6.row", "embeddings": "int8.row"},
    ),
    run=RunSettings(
        precision="float32",
        log_every=20,
        eval_every=100,
        eval_tokens=65_536,
        final_eval_tokens=65_536,
    ),
)

PRESETS = {
    "demo": DEMO,
    "small-6l": SMALL_6L,
    "baseline-9l": BASELINE,
    "11l-backout-int6": BACKOUT_INT6,
    "11l-xsa4-ema-int5mlp": XSA4_EMA_INT5MLP,
    "11l-vrl-leaky-gptq": VRL_LEAKY_GPTQ,
}
