"""Command `mixpanel-async import`: bulk import of events, user profiles and groups from files.

Start reading at `command.py`, the command function. The modules by subject:

- Options: `typer_options` (declarations), `option_values` (enums), `options` and `limits` (typed values).
- Reading: `inputs` finds and opens files; `format_detection` detects their format; `record_source` with `json_source`,
  `csv_source` and `parquet_source` reads records; `source_factory` picks the source; `reader` runs it in a thread.
- Records: `spread`, `column_mapping`, `time_parsing`, `number_format` and `project_time` apply the options, `presets`
  has those of other tools; `record_conversion` makes arguments of client calls; `column_check` and `time_check` compare
  the options with the records before anything is sent.
- Running: `importer` sends records, `client` creates the client, `dry_run` only checks, `concurrency` limits requests,
  `event_order` keeps identity events in order, `arrival_order` warns about files that are not.
- State: `file_import` (one file's progress), `checkpoint`, `rejects_file`, `reject_tracker`, `paths`, `lock`.
- Output: `progress` during the run, `summary` at the end; `dry_run_report`, with `fault_finder` and `text_types`.

Modules here import only public names of `mixpanel_async`, plus Typer, Rich, anyio and orjson; pyarrow only in
`parquet_source`.
"""
