"""Choices and formats are text: parsing and spelling are inverse, and mistakes are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packer.quantizers.choice import (
    CODERS,
    ROUNDINGS,
    TERNARY_RANGES,
    UNIFORM_RANGES,
    Choice,
    default_range,
    parse_choice,
)
from packer.quantizers.formats import (
    FormatError,
    LowRank,
    Passthrough,
    Stepped,
    Ternary,
    Uniform,
    parse_format,
)

plain_formats = st.one_of(
    st.sampled_from(["raw", "fp32", "fp16", "bf16"]).map(Passthrough),
    st.just(Ternary()),
    st.builds(
        Uniform, st.integers(2, 8), st.sampled_from(["row", "tensor"]), st.booleans(), st.booleans()
    ),
)
corrected_formats = st.builds(
    LowRank,
    plain_formats.filter(lambda format: not isinstance(format, Passthrough)),
    st.integers(1, 255),
    st.sampled_from([2, 4, 8]),
)
formats = (
    plain_formats
    | corrected_formats
    | st.builds(Stepped, st.booleans(), st.booleans(), st.booleans())
)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    format = draw(formats)
    coder = draw(st.sampled_from([None, *CODERS]))
    if isinstance(format, Passthrough):
        return Choice(format, coder)
    positive = st.floats(min_value=1e-6, max_value=1e6, exclude_min=True)
    if isinstance(format, Stepped):
        coder, rounding = draw(st.sampled_from([None, "ans"])), draw(st.sampled_from(ROUNDINGS))
        ascending = rounding != "nearest" and draw(st.booleans())
        step = draw(positive)
        return Choice(format, coder, rounding=rounding, ascending=ascending, step=step)
    base = format.base if isinstance(format, LowRank) else format
    rules = TERNARY_RANGES if isinstance(base, Ternary) else UNIFORM_RANGES
    rule = draw(st.sampled_from(rules))
    value = draw(positive) if rule == "kstd" else None
    prune = draw(st.floats(min_value=0, max_value=0.99))
    reaches = st.none() if format.code_max == 1 else st.integers(1, format.code_max - 1)
    rounding = draw(st.sampled_from(ROUNDINGS[:2]))  # the third is of stepped formats
    ascending = rounding != "nearest" and draw(st.booleans())
    reach = draw(st.none() | reaches)
    return Choice(format, coder, rule, value, reach, prune, rounding, ascending)


@given(formats)
def test_format_round_trip(format):
    assert parse_format(str(format)) == format


@given(choices())
def test_choice_round_trip(choice):
    assert parse_choice(str(choice)) == choice


@pytest.mark.parametrize(
    "text",
    [
        "int6.row",
        "fp16~brotli",
        "int6.row~zstd+kstd@12.85",
        "int5.row.wide+percentile+prune@0.03",
        "int8.tensor.scale32",
        "ternary.row+absmean",
        "int4.row+percentile-matrix",
        "int3.row+mse",
        "int5.row+gptq",
        "int4.row.rank4x8",
        "int4.row.wide.scale32.rank16x2~zstd+mse+gptq",
        "ternary.row.rank1x4+absmean",
        "int6.row~brotli+kstd@12.85+gptq",
        "int6.row+percentile-matrix+reach@20+prune@0.1+gptq",
        "int6.row+quantile",
        "int8.row+quantile@0.9999984",
        "int6.row+percentile-rounded+prune@0.1+zero@2+gptq",
        "int6.row+kstd@12.85+ascending+gptq",
        "step.row.col+ascending+gptq2@0.45",
    ],
)
def test_spellings_people_type_are_kept(text):
    assert str(parse_choice(text)) == text


def test_defaults_are_not_spelled():
    assert str(parse_choice("int6.row+absmax")) == "int6.row"
    assert str(parse_choice("ternary.row+mse")) == "ternary.row"
    assert default_range(parse_format("fp16")) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int9.row", "2 to 8 bits"),
        ("int6", "unknown format 'int6'"),
        ("int6.column", "unknown format"),
        ("int6.row~rar", "unknown coder 'rar'"),
        ("int6.row+kstd", "kstd takes one value"),
        ("int6.row+kstd@0", "positive"),
        ("int6.row+kstd@nan", "positive"),
        ("int6.row+absmax@3", "kstd takes one value"),
        ("int6.row+prune@1", r"\[0, 1\)"),
        ("int6.row+prune", "with a fraction"),
        ("int6.row+prune@x", "not a number"),
        ("int6.row+reach", "with a whole number"),
        ("int6.row+reach@2.5", "with a whole number"),
        ("int6.row+reach@31", "from 1 to 30"),
        ("int6.row+reach@0", "from 1 to 30"),
        ("int6.row+gptq@1", "gptq takes no value"),
        ("int6.row+gptq+gptq", "given twice"),
        ("int6.row+ascending", "nearest rounding has none"),
        ("step.row.col+ascending+nearest@0.3", "nearest rounding has none"),
        ("int6.row+ascending@1+gptq", "'ascending' is unknown"),
        ("int6.row+ascending+ascending+gptq", "given twice"),
        ("fp16+gptq", "takes no"),
        ("int4.row.rank4", "unknown format"),
        ("int4.row.rank4x3", "factors of 2, 4 or 8 bits"),
        ("int4.row.rank0x4", "has rank 1 to 255"),
        ("int4.row.rank256x4", "has rank 1 to 255"),
        ("fp16.rank4x4", "only integers and ternary take a correction"),
        ("int4.row.rank4x4.rank4x4", "only integers and ternary take a correction"),
        ("int6.row+percentile+mse", "second range rule"),
        ("int6.row+wish", "step 'wish' is unknown"),
        ("fp16+kstd@3", "takes no"),
        ("ternary.row+absmax", "no range rule 'absmax'"),
        ("", "unknown format ''"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(FormatError, match=says):
        parse_choice(text)
