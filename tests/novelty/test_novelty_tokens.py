"""Tokenizers: equal to rouge_score where they claim it, fair to every script elsewhere."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize as rouge_tokenize

from selfinstruct.errors import ConfigError
from selfinstruct.novelty import NoveltyIndex, tokenizer

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

# "The water is cold today" or the like: plain sentences of no importance, one per script.
SCRIPTS = {
    "Latin": "Søren spiste æblegrød på øen",
    "Cyrillic": "Сегодня холодная вода",
    "Greek": "Το νερό είναι κρύο σήμερα",
    "Armenian": "Ջուրն այսօր սառն է",
    "Georgian": "წყალი დღეს ცივია",
    "Hebrew": "המים קרים היום",
    "Arabic": "الماء بارد اليوم",
    "Syriac": "ܡܝܐ ܩܪܝܪܐ",
    "Thaana": "ފެން ފިނި",
    "NKo": "ߖߌ ߛߎߡߊ",
    "Ethiopic": "ውሃው ዛሬ ቀዝቃዛ ነው",
    "Devanagari": "आज पानी ठंडा है",
    "Bengali": "আজ জল ঠান্ডা",
    "Gurmukhi": "ਅੱਜ ਪਾਣੀ ਠੰਡਾ ਹੈ",
    "Gujarati": "આજે પાણી ઠંડું છે",
    "Oriya": "ଆଜି ପାଣି ଥଣ୍ଡା",
    "Tamil": "இன்று தண்ணீர் குளிர்",
    "Telugu": "ఈరోజు నీరు చల్లగా",
    "Kannada": "ಇಂದು ನೀರು ತಣ್ಣಗಿದೆ",
    "Malayalam": "ഇന്ന് വെള്ളം തണുത്തതാണ്",
    "Sinhala": "අද වතුර සීතලයි",
    "Thai": "วันนี้น้ำเย็น",
    "Lao": "ມື້ນີ້ນ້ຳເຢັນ",
    "Tibetan": "དེ་རིང་ཆུ་གྲང་མོ་རེད",
    "Myanmar": "ဒီနေ့ ရေအေးတယ်",
    "Khmer": "ថ្ងៃនេះទឹកត្រជាក់",
    "Han": "今天的水很冷",
    "Hiragana": "きょうのみずはつめたい",
    "Katakana": "コーヒー ハ ツメタイ",
    "Hangul": "오늘은 물이 차갑다",
    "Bopomofo": "ㄐㄧㄣ ㄊㄧㄢ",
    "Mongolian": "ᠤᠰᠤ ᠬᠦᠢᠲᠡᠨ",
    "Cherokee": "ᎠᎹ ᎤᏴᏝ",
    "Canadian": "ᐃᒥᖅ ᓂᒡᓚᓱᒃᑐᖅ",
    "Javanese": "ꦧꦚꦸ ꦲꦝꦼꦩ꧀",
    "Balinese": "ᬬᬾᬄ ᬦ᭄ᬬᬾᬫ᭄",
    "Yi": "ꀁꊒꄜ",
    "Tifinagh": "ⴰⵎⴰⵏ ⵉⵙⵎⵎⵉⴹ",
    "Adlam": "𞤲𞤣𞤭𞤴𞤢𞤥 𞤬𞤫𞥅𞤱𞤵𞤲",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["script", "chars", "whitespace", "icu"])
def test_identical_texts_are_identical_in_every_script(script: str, name: str) -> None:
    if name == "icu":
        pytest.importorskip("icu4py")
    text = SCRIPTS[script]
    index = NoveltyIndex(tokenizer=name, engine="numpy")
    index.add_many((other, sentence) for other, sentence in SCRIPTS.items())
    nearest = index.nearest(text)
    assert nearest is not None
    assert nearest.score == 1.0
    assert nearest.id == script
    assert index.too_near(text) == nearest


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["script", "chars"])
def test_nothing_but_separators_is_lost_and_marks_stay_with_their_letters(script: str, name: str) -> None:
    text = SCRIPTS[script]
    tokens = tokenizer(name)(text)
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert "".join(tokens) == "".join(c for c in folded if c.isalnum() or unicodedata.category(c)[0] == "M")
    for token in tokens:
        assert unicodedata.category(token[0])[0] != "M"


def test_unspaced_scripts_are_cut_into_characters_and_others_into_words() -> None:
    script = tokenizer()
    assert script("Python编程5天, naïve Café_x don't") == [
        *("python", "编", "程", "5", "天", "naïve", "café", "x", "don", "t")
    ]
    assert script("हिन्दी में") == ["हिन्दी", "में"]
    assert script("น้ำเย็น") == ["น้ํ", "า", "เ", "ย็", "น"]
    assert script("か\u3099が ガ") == ["が", "が", "ガ"]
    assert script("می\u200cخواهم") == ["میخواهم"]
    assert script("ＡＢＣ　１２３") == ["abc", "123"]


@pytest.mark.parametrize("shared", ["Python", "5"])
def test_unrelated_chinese_texts_that_share_one_ascii_word_are_not_near(shared: str) -> None:
    first, second = f"说出{shared}种入侵的植物。", f"请列举美国的{shared}个州并写成诗"
    fair, stock = NoveltyIndex(engine="numpy"), NoveltyIndex(tokenizer="rouge", engine="numpy")
    for index in (fair, stock):
        index.add("first", first)
    assert fair.too_near(second) is None
    nearest = fair.nearest(second)
    assert nearest is not None
    assert nearest.score < 0.4
    assert stock.too_near(second) is not None  # the defect that `script` is for


@given(st.text(max_size=60))
def test_rouge_is_rouge_scores_own_tokenizer(text: str) -> None:
    assert tokenizer("rouge")(text) == rouge_tokenize(text, None)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_script_equals_rouge_on_ascii(text: str) -> None:
    assert tokenizer("script")(text) == tokenizer("rouge")(text)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_words_are_the_same_inside_a_text_of_another_script(text: str) -> None:
    assert tokenizer("script")(text + " я") == [*tokenizer("rouge")(text), "я"]


@given(
    st.lists(st.one_of(st.text(st.characters(max_codepoint=127)), st.text(), st.just("a\0b")), max_size=40),
    st.sampled_from(["script", "rouge", "chars", "whitespace"]),
)
def test_many_texts_are_split_like_each(texts: list[str], name: str) -> None:
    assert list(tokenizer(name).split_many(texts)) == [tokenizer(name)(text) for text in texts]


@given(st.text(max_size=60))
def test_script_forgets_case_and_compatibility_forms(text: str) -> None:
    script = tokenizer("script")
    assert script(unicodedata.normalize("NFKC", text)) == script(text)
    assert script(unicodedata.normalize("NFD", text)) == script(text)


@given(st.text(max_size=60), st.sampled_from(["script", "chars", "whitespace", "rouge"]))
def test_no_token_is_empty_or_holds_a_blank(text: str, name: str) -> None:
    for token in tokenizer(name)(text):
        assert token
        assert not any(c.isspace() for c in token)


@pytest.mark.parametrize("file", ["alpaca_en_demo.json", "alpaca_zh_demo.json"])
def test_real_instructions_have_tokens(file: str) -> None:
    path = DATA / file
    if not path.exists():
        pytest.skip("real instructions are not here")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert all(tokenizer("script")(row["instruction"]) for row in rows)


def test_names_and_versions() -> None:
    assert {tokenizer(name).version for name in ("script", "rouge", "whitespace", "chars")} == {
        *("script-1", "rouge-0.1.2", "whitespace-1", "chars-1")
    }
    with pytest.raises(ConfigError, match="did you mean 'script'"):
        tokenizer("scripts")
    with pytest.raises(ConfigError, match="script, rouge, whitespace, chars, icu"):
        tokenizer("")


def test_icu_finds_words() -> None:
    pytest.importorskip("icu4py")
    icu = tokenizer("icu")
    assert icu.version.startswith("icu4py-")
    assert icu("Hello, big world!") == ["hello", "big", "world"]
    assert len(icu("今天天气很好")) < len("今天天气很好")
