"""What policies and judges have in common: they may hold networks."""


class Loadable:
    """A component that may load something large; by default nothing is."""

    def check(self) -> None:
        """Refuse what cannot be used, before anything expensive is done.

        Raises:
            ValueError: Saying what, in one line.
        """

    def unload(self) -> None:
        """Let go of networks; they are loaded again when they are needed."""
