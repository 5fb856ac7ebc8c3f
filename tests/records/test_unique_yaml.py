"""Whatever a YAML file holds, what is wrong with it is an error of YAML in one line."""

import pytest
import yaml

from safe_rlhf_v.records.unique_yaml import DuplicateKeyError, UniqueKeyLoader, check_unique

KEYS = ('!!int "[1]"', '!!int "["', '!!int ""', '!!bool "maybe"', '!!float "x"', '!!int "{a: 1}"')
VALUES = (*KEYS, '!!timestamp "x"', "2001-99-99")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_not_what_its_tag_says_is_refused_in_one_line(key):
    text = f"a: 1\n{key}: 2"
    with pytest.raises(yaml.YAMLError, match=r"^line 2: .* cannot be read as (int|bool|float)$"):
        check_unique(yaml.compose(text, Loader=yaml.SafeLoader))
    with pytest.raises(yaml.YAMLError, match=r"^line 2: .*$"):
        yaml.load(text, UniqueKeyLoader)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", ["a: {}", "a: [{}]", "- b: {{c: {}}}"])
def test_a_value_that_is_not_what_its_tag_says_is_refused_in_one_line(value, form):
    with pytest.raises(yaml.YAMLError, match=r"^line 1: .* cannot be read as \w+$"):
        yaml.load(form.format(value), UniqueKeyLoader)


@pytest.mark.parametrize("key", ["!!int [1]", "[1]", "{b: 1}", "!!bool {b: 1}"])
def test_a_key_that_is_no_scalar_is_refused(key):
    with pytest.raises(yaml.YAMLError):
        yaml.load(f"? {key}\n: 2", UniqueKeyLoader)


@pytest.mark.parametrize("text", ["1: a\n!!int '0x1': b", "1: a\n1.0: b", "1: a\nyes: b", "no: a\n!!float '0': b"])
def test_keys_that_are_equal_are_refused_however_they_are_written(text):
    with pytest.raises(DuplicateKeyError, match="line 2"):
        yaml.load(text, UniqueKeyLoader)


def test_plain_files_are_read():
    text = "2: a\n2.5: b\nyes: [1, 0x10]\n'3': !!int '7'"
    assert yaml.load(text, UniqueKeyLoader) == {2: "a", 2.5: "b", True: [1, 16], "3": 7}
