"""Language packs: the shipped ones, the fall-back chain, what a faulty file is told, and lengths in any script."""

from __future__ import annotations

import shutil
import unicodedata
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import resources
from selfinstruct.errors import ConfigError
from selfinstruct.languages import (
    LanguagePack,
    Phrases,
    Roles,
    load_pack,
    read_pack,
    script,
    script_counts,
    tokens,
)

EN = load_pack("en")
ZH = load_pack("zh")
SHIPPED = [tag for tag in resources.folders("seeds") if resources.find("seeds", f"{tag}/pack.yaml")]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of the person's own seeds."""
    monkeypatch.setenv("SELFINSTRUCT_HOME", str(tmp_path))
    folder = tmp_path / "seeds"
    folder.mkdir()
    return folder


def write(folder: Path, tag: str, like: str = "en", changes: tuple[tuple[str, str], ...] = ()) -> Path:
    """Write a pack of one's own: a copy of a shipped one with texts replaced."""
    text = (resources.shipped("seeds") / like / "pack.yaml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / tag / "pack.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("tag", SHIPPED)
def test_shipped_packs_are_whole(tag: str) -> None:
    pack = load_pack(tag)
    assert pack.tag == tag
    assert pack.shipped
    assert pack.first_words
    assert pack.refusals.phrases
    assert pack.self_reference.phrases
    assert pack.needs_context.phrases
    assert pack.blocked_words.phrases
    assert pack.labels.instruction
    # A label that reads as two fields would split every record.
    spellings = [
        spelling.casefold()
        for spelled in (pack.labels.instruction, pack.labels.input, pack.labels.output, pack.labels.task)
        for spelling in spelled
    ]
    assert len(spellings) == len(set(spellings))
    # Nor can it be told who speaks, or what was answered, where a spelling stands for both.
    speakers = [name.casefold() for each in fields(Roles) for name in getattr(pack.roles, each.name)]
    assert len(speakers) == len(set(speakers))
    assert not set(pack.yes) & set(pack.no)
    # A pack is written in its own scripts.
    share, letters = pack.script_share(pack.native_name + "".join(pack.first_words))
    assert letters
    assert share > 0.9


def test_the_generic_pack_speaks_of_roles_in_english() -> None:
    generic = load_pack("qya")
    assert (generic.roles, generic.example, generic.class_label) == (EN.roles, EN.example, EN.class_label)
    assert (generic.yes, generic.no) == (("Yes",), ("No",))
    assert (ZH.roles.user[0], ZH.roles.assistant[0]) == ("用户", "助手")
    assert (ZH.roles.patient[0], ZH.roles.doctor[0]) == ("病人", "医生")


def test_yes_and_no_are_words_and_true_is_not(own_folder: Path) -> None:
    write(own_folder, "xx", changes=(("yes: [Yes]", "yes: [yes, Y, on]"), ("no: [No]", "no: [no, trueish]")))
    assert (load_pack("xx").yes, load_pack("xx").no) == (("yes", "Y", "on"), ("no", "trueish"))
    write(own_folder, "xx", changes=(("yes: [Yes]", "yes: [true]"),))
    with pytest.raises(ConfigError, match=r"yes: expected texts only .*found True"):
        load_pack("xx")


def test_english_and_chinese_ship() -> None:
    assert {"en", "zh"} <= set(SHIPPED)
    assert (EN.unit, EN.minimum_length, EN.maximum_length) == ("words", 4, 150)
    assert (ZH.unit, ZH.minimum_length) == ("characters", 4)
    assert EN.no_input[0] == "<noinput>"
    assert ZH.no_input[0] == "<无输入>"
    assert (ZH.labels.instruction[0], ZH.labels.input[0], ZH.labels.output[0]) == ("指令", "输入", "输出")


@pytest.mark.parametrize(
    ("tag", "folder", "shipped"),
    [
        ("en", "en", True),
        ("EN", "en", True),
        ("en-gb", "en", True),
        ("en-Latn-GB-oxendict", "en", True),
        ("zh-Hans", "zh", True),
        ("zh-hans-cn", "zh", True),
        ("zh-CN", "zh", True),
        ("zh-Bopo", "zh-Bopo", False),
        ("zh-Bopo-TW", "zh-Bopo-TW", False),
        ("en-Dsrt", "en-Dsrt", False),
        ("qya", "qya", False),
        ("qya-x-private", "qya-x-private", False),
    ],
)
def test_fall_back_keeps_the_script(tag: str, folder: str, shipped: bool) -> None:
    pack = load_pack(tag)
    assert (pack.tag, pack.shipped) == (folder, shipped)
    if not shipped:
        assert pack.name == folder
        assert not pack.scripts
        assert not pack.blocked_words.phrases
        assert pack.labels.output[0] == "Output"


def test_a_region_that_implies_a_script_gets_that_script_or_nothing(own_folder: Path) -> None:
    changes = (("first_words:", "region_scripts: {AA: Cyrl}\nfirst_words:"),)
    write(own_folder, "qaa", changes=changes)
    assert (load_pack("qaa-BB").tag, load_pack("qaa").tag) == ("qaa", "qaa")
    assert (load_pack("qaa-AA").tag, load_pack("qaa-AA").shipped) == ("qaa-AA", False)
    assert load_pack("qaa-Latn-AA").tag == "qaa"
    write(own_folder, "qaa-Cyrl", changes=(("scripts: [Latn]", "scripts: [Cyrl]"),))
    assert {load_pack(tag).tag for tag in ("qaa-AA", "qaa-Cyrl", "qaa-cyrl-aa", "qaa-Cyrl-BB")} == {"qaa-Cyrl"}


def test_the_regions_of_traditional_characters_never_get_the_simplified_pack() -> None:
    for tag in ("zh-Hant", "zh-Hant-TW", "zh-TW", "zh-HK", "zh-MO"):
        assert load_pack(tag).tag != "zh"
        assert load_pack(tag).scripts != ZH.scripts
    assert load_pack("zh-SG").tag == "zh"


def test_own_pack_overrides_the_shipped_one_and_is_read_again(own_folder: Path) -> None:
    path = write(own_folder, "en", changes=(("name: English", "name: My English"),))
    assert load_pack("en").name == "My English"
    path.write_text(path.read_text(encoding="utf-8").replace("My English", "Our English"), encoding="utf-8")
    assert load_pack("en").name == "Our English"
    shutil.rmtree(path.parent)
    assert load_pack("en").name == "English"


@pytest.mark.parametrize("tag", ["", "e", "english language", "en_GB", "zh--CN", "../en", "en/..", "e1", "toolonglang"])
def test_a_tag_of_the_wrong_shape_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="BCP 47"):
        load_pack(tag)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: English", "nome: English", r"name: this key is missing; is 'nome'"),
        ("name: English", "name: English\nnmae: x", r"nmae: unknown key: did you mean 'name'"),
        ("name: English", "name: 7", r"name: expected text, found 7 \(int\)"),
        ("name: English", "name: English\nname: Again", r"'name' is given twice"),
        ("unit: words", "unit: letters", r"unit: expected words or characters, found 'letters'"),
        ("direction: ltr", "direction: up", r"direction: expected ltr or rtl"),
        ("scripts: [Latn]", "scripts: [Latin]", r"scripts: 'Latin' is no script code .*did you mean 'Latn'"),
        ("scripts: [Latn]", "scripts: Latn", r"scripts: expected a list"),
        ("{min: 4, max: 150}", "{min: 4, max: 3}", r"min 4 is above max 3"),
        ("{min: 4, max: 150}", "{min: 4, max: true}", r"instruction_length.max: expected a whole number"),
        ("{min: 4, max: 150}", "{min: 4, maximum: 150}", r"instruction_length.max: this key is missing; is 'maximum'"),
        ("{min: 4, max: 150}", "4", r"instruction_length: expected a mapping"),
        ("user: [User, Human]", "user: []", r"roles.user: expected a list of at least one text"),
        ("patient: [Patient]", "patients: [Patient]", r"roles.patient: this key is missing; is 'patients'"),
        ("class_label:", "class_labels:", r"class_label: this key is missing; is 'class_labels'"),
        ("input: [Input]", "input: []", r"labels.input: expected a list of at least one text"),
        ('- "null"', "- null", r"no_input: expected texts only .*quote"),
        ("- none needed", "- none", r"no_input: 'none' is listed twice"),
        ("match: word", "match: regex", r"blocked.match: expected word or substring"),
        ("openings: [Write a program]", "opening: [Write a program]", r"blocked.openings: this key is missing"),
        ("first_words:", "region_scripts: {tw: Hant}\nfirst_words:", r"region_scripts: expected regions"),
        ("first_words:", "region_scripts: {TW: Trad}\nfirst_words:", r"region_scripts.TW: 'Trad' is no script"),
        ("name: English", "name: [English", r"can't be read as YAML"),
    ],
)  # fmt: skip
def test_a_faulty_pack_names_file_and_key(own_folder: Path, old: str, new: str, told: str) -> None:
    path = write(own_folder, "xx", changes=((old, new),))
    with pytest.raises(ConfigError, match=told) as caught:
        load_pack("xx")
    assert str(path) in str(caught.value)


def test_a_pack_that_is_no_mapping_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pack.yaml"
    path.write_text("- name\n")
    with pytest.raises(ConfigError, match="the file: expected a mapping of keys"):
        read_pack(path, "xx")
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_pack(path, "xx")


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("", 0, 0),
        ("Why is the sky blue?", 5, 15),
        ("What's well-known about 3.14 — really?", 5, 28),
        ("  spaces\tand\nlines  ", 3, 14),
        ("解释光合作用。", 6, 6),
        ("用Python写一个函数，好吗？", 9, 14),
        ("，。！？《》（）…", 0, 0),
        ("किताब पढ़ो", 2, 5),
        ("अ" + "\u093f" * 20, 1, 1),
        ("e\u0301te\u0301", 1, 3),
        ("서울은 어디에 있나요?", 3, 9),
        ("한국", 1, 2),
        ("สวัสดี", 4, 4),
        ("１２３ ＡＢＣ", 2, 6),
        ("🎉🎉 ✓", 0, 0),
    ],
)
def test_length(text: str, words: int, characters: int) -> None:
    assert EN.length(text) == words
    assert ZH.length(text) == characters


@given(
    st.text(max_size=60), st.text(alphabet="，。！？、；：“”（）《》…—,.!?;:'\"()[]{}-  \n\t\u0301\u093f", max_size=20)
)
def test_length_ignores_what_is_no_letter_or_digit(text: str, noise: str) -> None:
    for pack in (EN, ZH):
        assert pack.length(noise) == 0
        assert pack.length(text) >= 0
        assert pack.length(f"{text} {noise}") == pack.length(text)
    assert ZH.length(text) == ZH.length(unicodedata.normalize("NFD", text))


@given(st.text(max_size=60))
def test_tokens_hold_every_letter_once(text: str) -> None:
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = [char for char in folded if unicodedata.category(char)[0] in "LN"]
    assert [char for char in "".join(tokens(text)) if unicodedata.category(char)[0] in "LN"] == letters


def test_tokens_keep_marks_and_split_unspaced_scripts() -> None:
    assert tokens("Don't STOP, Émile!") == ("don", "t", "stop", "émile")
    assert tokens("हिन्दी की किताब") == ("हिन्दी", "की", "किताब")
    assert tokens("用Python写") == ("用", "python", "写")
    assert tokens("が") == ("が",)


def test_word_phrases_match_whole_words_in_any_case() -> None:
    words = Phrases("word", ("map", "go to", "I'm sorry"))
    assert words.find("Draw a MAP of it") == "map"
    assert words.find("Go\n to bed") == "go to"
    assert words.find("I’m sorry") == "I'm sorry"
    assert words.find("a mapping, remapped; bitmap map2") is None
    assert words.find("let them ego to") is None
    assert words.find("a mapping of a map") == "map"
    assert words.opens("  “Go to sleep”") == "go to"
    assert words.opens("Then go to sleep") is None


def test_word_phrases_do_not_end_inside_a_word_with_vowel_signs() -> None:
    # re's \b takes the mark behind the letter for the end of the word.
    assert Phrases("word", ("क",)).find("कि") is None
    assert Phrases("word", ("कि",)).find("यह कि वह") == "कि"


def test_substring_phrases_match_anywhere() -> None:
    phrases = Phrases("substring", ("图片", "http"))
    assert phrases.find("描述这张图片的内容") == "图片"
    assert phrases.find("HTTPS") == "http"
    assert phrases.find("图 片") is None
    assert Phrases().find("anything") is None


def test_the_longest_phrase_of_a_place_is_named() -> None:
    assert Phrases("word", ("as an AI", "as an AI model")).find("Well, as an AI model I") == "as an AI model"
    assert Phrases("word", ("as an AI", "as an AI model")).find("Well, as an AI modeller") == "as an AI"


def test_script_share() -> None:
    assert ZH.script_share("解释光合作用") == (1.0, 6)
    assert ZH.script_share("Explain") == (0.0, 7)
    assert ZH.script_share("用Go写") == (0.5, 4)
    assert EN.script_share("123 + 4") == (1.0, 0)
    assert LanguagePack("x", "x", "x").script_share("что") == (1.0, 3)
    assert LanguagePack("ja", "ja", "ja", scripts=("Jpan",)).script_share("日本のカタカナ") == (1.0, 7)


@pytest.mark.parametrize(
    ("char", "code"),
    [
        ("a", "Latn"), ("é", "Latn"), ("字", "Hani"), ("あ", "Hira"), ("カ", "Kana"), ("한", "Hang"), ("ж", "Cyrl"),
        ("ب", "Arab"), ("א", "Hebr"), ("ก", "Thai"), ("क", "Deva"), ("ক", "Beng"), ("த", "Taml"), ("ა", "Geor"),
        ("ω", "Grek"), ("ኢ", "Ethi"), ("ខ", "Khmr"), ("မ", "Mymr"), ("ᐃ", "Cans"), ("ᱚ", "Olck"), ("1", ""), ("。", ""),
    ],
)  # fmt: skip
def test_script_of_a_letter(char: str, code: str) -> None:
    assert script(char) == code


@given(st.text(st.characters(codec="ascii")) | st.text())
def test_letters_are_counted_by_script_in_the_order_they_come(text: str) -> None:
    expected: dict[str, int] = {}
    for char in filter(str.isalpha, text):
        expected[script(char)] = expected.get(script(char), 0) + 1
    assert list(script_counts(text).items()) == list(expected.items())


@given(
    st.lists(st.sampled_from(["as an", "an ai", "i'm", "s", "-", "...", "n ai"]), unique=True),
    st.text("aAsnNiIm '-._", max_size=30).map(lambda text: " ".join(text.split())),
)
def test_a_phrase_is_found_where_it_stands_first_as_words_of_its_own(known: list[str], text: str) -> None:
    def cuts(at: int) -> bool:
        return 0 < at < len(text) and all(char.isalnum() or char == "_" for char in text[at - 1 : at + 1])

    found = [
        (start, -len(phrase), phrase)
        for phrase in known
        for start in range(len(text))
        if text.lower().startswith(phrase, start) and not cuts(start) and not cuts(start + len(phrase))
    ]
    assert Phrases("word", tuple(known)).find(text) == (min(found)[2] if found else None)
