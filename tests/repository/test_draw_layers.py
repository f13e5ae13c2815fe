"""The picture of the packages in layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import draw_layers


def test_layers_refuse_a_circle() -> None:
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_layers.find_layers(imports) == [["c"], ["b"], ["a"]]
    assert draw_layers.reduce_imports(imports) == {"a": {"b"}, "b": {"c"}, "c": set()}
    with pytest.raises(SystemExit, match="circle"):
        draw_layers.find_layers({"a": {"b"}, "b": {"a"}})


def test_layers_are_found_in_the_code(tmp_path: Path) -> None:
    package = tmp_path / "edgevlm"
    (package / "low").mkdir(parents=True)
    (package / "low" / "__init__.py").write_text("")
    (package / "low" / "inner.py").write_text("from edgevlm.low import other\nimport numpy\n")
    (package / "high.py").write_text(
        "def late():\n    from edgevlm import low\n    import edgevlm.mid.x\n"
    )
    (package / "mid.py").write_text("from edgevlm.low.inner import x\n")
    assert draw_layers.find_imports(tmp_path) == {
        "high": {"low", "mid"},
        "mid": {"low"},
        "low": set(),
    }


def test_picture_has_every_box() -> None:
    imports = draw_layers.find_imports(draw_layers.REPOSITORY)
    picture = draw_layers.draw(imports)
    assert {"vlm", "engine", "runtimes", "errors"} <= set(imports)
    assert all(f">{box}</text>" in picture for box in imports)
