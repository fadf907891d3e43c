"""Progress bars."""

from __future__ import annotations

import pytest

from secateur.reporting.progress import progress_bar


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_silent_where_there_is_no_terminal(capfd, shown):
    with progress_bar("work", shown) as bar:
        bar(1, 2)
    assert capfd.readouterr() == ("", "")
