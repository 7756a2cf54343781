"""Write docs/params.md and docs/schema.md from the types that check those files, docs/features.md from the registry."""

from clearway.cli import DONE, parser, run


def main() -> int:
    parser(__doc__ or "").parse_args()

    from clearway.files import write_text
    from clearway.project_folder import HOME
    from clearway.reference_pages import PAGES, render

    for page in PAGES:
        write_text(HOME / "docs" / page, render(page))
    print(f"write_reference: {', '.join(PAGES)} → {HOME / 'docs'}")
    return DONE


if __name__ == "__main__":
    run(main)
