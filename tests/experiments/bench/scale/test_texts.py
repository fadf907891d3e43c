"""Texts of the standard library."""

from __future__ import annotations

from secateur_experiments.bench.scale import texts


def test_docstrings_are_those_of_modules_classes_and_functions(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Of the module."""\nclass A:\n    """Of a class."""\n    def f(self):\n        "Of it."\n'
    )
    assert list(texts.docstrings([tmp_path / "a.py"])) == ["Of the module.", "Of a class.", "Of it."]


def test_texts_come_once_each_in_an_order_of_the_seed():
    words = ["b", "a", "c", "a", "d", "e"]
    assert texts.shuffled(iter(words)) == texts.shuffled(iter(reversed(words)))
    assert sorted(texts.shuffled(iter(words))) == ["a", "b", "c", "d", "e"]
    assert texts.shuffled(iter(words), 1) != texts.shuffled(iter(words), 2)


def test_the_standard_library_has_sentences_enough():
    sentences = texts.sentences(1200)
    assert len(set(sentences)) == 1200
    assert all(20 <= len(sentence) <= 300 for sentence in sentences)
