"""The web console: pages for owners under `/console`, rendered on the server.

Pages work without script. The one script, `static/console.js`, reads a page again every 10 seconds.

**A page.** Write a module `console/NAME.py` with a router, and add the module to `PAGES` in `console/site.py`. Its
functions are plain `def` and take a `Visited` first. A `Visit` is the API's `RequestContext` (token, role, strategies,
market time `now`, `engine`, `lists()`, `reads()`) that can also render. Call services only, as in the API.

    router = console_router()

    @router.get("/calendar")
    def show_calendar(visit: Visited, year: Annotated[int | None, Query(ge=2000, le=2100)] = None) -> Response:
        found = list_windows(visit.engine, visit.lists(), year=year)
        return visit.render("calendar.html", windows=found)

Paths are below `/console`. The template extends `base.html` and fills the blocks `title` and `content`. Values are
escaped, and an unknown name is an error. A region with `data-live` and an `id` is refreshed. Inputs, open `<details>`
and the focus in it survive if they have an `id`. Scripts, event attributes and `style` attributes are blocked by the
Content-Security-Policy: use classes of `static/console.css`, and attributes of SVG elements such as `fill`.
Filters (`console/words.py`): `{{ at | ago }}`, `{{ at | stamp }}`, `{{ 12345 | count }}`, `{{ "a line" | sentence }}`,
`{{ 5.0 | percent }}`, `{{ 3 | plural("slot") }}`, `{{ span | duration }}`. Macros (`parts.html`): `field`, `badge`,
`moment`, `hidden`.

**An act.** A button is a link to a page that shows what the act will do before it does it. One function serves both
methods. `describe` is called to show the page. `perform` does it and returns one line for the owner. A refusal shows
the page again with the reason and with what was typed. Its status is that of the API.

    @router.get("/rollouts/{rollout_id}/pause")
    @router.post("/rollouts/{rollout_id}/pause")
    def pause(visit: Visited, rollout_id: RolloutId) -> Response:
        name = queries.find_rollout(visit.engine, rollout_id).strategy_name

        def describe() -> OwnerAct:
            visit.reads(name)
            return OwnerAct("Pause fib_rsi 2.0.0", ["Users stay at 5 %."], "Pause", generation=7)

        def perform(form: SentForm) -> str:
            command = Command(visit.changes(name), visit.now, visit.reason(), if_generation=visit.generation)
            rollouts.pause(visit.engine, command, strategy_name=name, rollout_id=rollout_id)
            return "fib_rsi 2.0.0 is paused"

        return visit.act(describe, perform, back=f"/console/rollouts/{rollout_id}")

`generation` sends the shown generation with the form, so that the act is refused if the strategy has changed since.
A rollback uses `visit.rolls_back(name, roll_back)` and gives no generation: it must not be refused for that. Its
`describe` shows less in place of failing when something cannot be read. Show links to acts only where
`visit.can_change(name)` is true. The server checks again.

**Another form.** Use `method="post"`, `{{ hidden(csrf) }}` and the macro `field`, and read `visit.form`.
`visit.done(line, path)` ends it: the browser goes to *path* and shows the line once.

**A test.** `tests/api/browsing.py` has a `Browser`: `Browser(api).log_in("owner").get("/alerts")` and
`.post("/alerts/1/acknowledge", reason="seen")`, which sends the form's hidden fields.
"""
