/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-check: what is wrong with a disk; mends it, and takes that back. */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-check [options] FILE...\n"
	"Find every fault of a VHD; mend what the rest of the file proves.\n"
	"\n"
	"      --chain          the parents as well, down to the base\n"
	"      --repair         mend; the old bytes are kept in FILE.undo\n"
	"      --undo           take the last repair back\n"
	"  -n, --dry-run        with --repair: only say what it would mend\n"
	"  -f, --force          with --undo: even if the disk was changed since\n"
	"      --no-bitmaps     do not look into the blocks, which takes long\n"
	"      --json           report as one JSON document\n"
	"      --unlocked       look at a disk that is in use\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_CHAIN = CLI_TOOL, OPT_REPAIR, OPT_UNDO, OPT_NO_BITMAPS, OPT_UNLOCKED };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"chain", no_argument, NULL, OPT_CHAIN},
	{"repair", no_argument, NULL, OPT_REPAIR},
	{"undo", no_argument, NULL, OPT_UNDO},
	{"dry-run", no_argument, NULL, 'n'},
	{"force", no_argument, NULL, 'f'},
	{"no-bitmaps", no_argument, NULL, OPT_NO_BITMAPS},
	{"json", no_argument, NULL, CLI_JSON},
	{"unlocked", no_argument, NULL, OPT_UNLOCKED},
	{NULL, 0, NULL, 0},
};

struct job {
	struct cli_common common;
	struct img_check check;
	struct cli_progress progress;
	bool repair, undo, force, json;
	unsigned files, faults; /* printed so far; of the present file */
	uint64_t looked_at;	/* bytes of it */
	const char *path;
};

static const char *const severities[] = {"note", "warning", "error"};

static void json_text(const char *key, const char *value)
{
	printf(",\"%s\":", key);
	if (*value)
		cli_json_string(stdout, value);
	else
		fputs("null", stdout);
}

static void json_number(const char *key, uint64_t value, bool known)
{
	if (known)
		printf(",\"%s\":%" PRIu64, key, value);
	else
		printf(",\"%s\":null", key);
}

static void json_fault(struct job *j, const struct img_fault *f)
{
	printf("%s{\"id\":\"%s\",\"severity\":\"%s\"", j->faults++ ? "," : "", f->id,
	       severities[f->severity]);
	json_text("file", f->path);
	json_number("offset", f->offset, f->offset != IMG_FAULT_NOWHERE);
	json_number("block", f->block, f->blocks);
	json_number("blocks", f->blocks, f->blocks);
	json_text("text", f->what);
	json_text("found", f->found);
	json_text("expected", f->expected);
	json_text("lost", f->loss);
	printf(",\"repairable\":%s}", f->mendable ? "true" : "false");
}

static void text_line(const char *label, const char *value)
{
	if (!*value)
		return;
	printf("  %s", label);
	cli_print_text(stdout, value, "\t");
	putchar('\n');
}

static void text_fault(struct job *j, const struct img_fault *f)
{
	if (j->common.quiet && f->severity != IMG_ERROR)
		return;
	cli_print_text(stdout, f->path, "");
	printf(": %s %s", severities[f->severity], f->id);
	if (f->offset != IMG_FAULT_NOWHERE)
		printf(" at %" PRIu64, f->offset);
	if (f->blocks == 1)
		printf(", block %" PRIu32, f->block);
	else if (f->blocks)
		printf(", blocks %" PRIu32 "-%" PRIu32, f->block, f->block + f->blocks - 1);
	printf(": %s\n", f->what);
	text_line("found     ", f->found);
	text_line("expected  ", f->expected);
	text_line("LOST      ", f->loss);
	if (f->mendable && j->repair && !j->check.dry_run && strcmp(f->path, j->path) == 0)
		text_line("", "mended");
	else if (f->mendable)
		text_line("", "--repair mends it");
}

static void on_fault(void *ctx, const struct img_fault *f)
{
	struct job *j = ctx;

	if (j->json)
		json_fault(j, f);
	else
		text_fault(j, f);
}

static int on_progress(void *ctx, uint64_t done, uint64_t planned)
{
	struct job *j = ctx;

	j->looked_at = done;
	return cli_progress(&j->progress, done, planned);
}

/* What is there in the end decides. */
static bool is_sound(const struct job *j, const struct img_check_result *r,
		     const struct img_check_result *after)
{
	return (j->repair && !j->check.dry_run ? after : r)->errors == 0;
}

static void json_counts(const struct img_check_result *r)
{
	printf("\"errors\":%" PRIu64 ",\"warnings\":%" PRIu64 ",\"notes\":%" PRIu64, r->errors,
	       r->warnings, r->notes);
}

static void json_end(const struct job *j, const struct img_check_result *r,
		     const struct img_check_result *after, bool sound, const char *error)
{
	fputs("],", stdout);
	json_counts(r);
	printf(",\"repairable\":%" PRIu64 ",\"layers\":%u,\"blocks\":%" PRIu64 ",\"used\":%" PRIu64
	       ",\"leaked\":%" PRIu64 ",\"repaired\":%s",
	       r->mendable, r->layers, r->blocks, r->used, r->leaked,
	       r->repaired ? "true" : "false");
	json_text("undo", r->undo);
	if (j->repair && !j->check.dry_run) {
		fputs(",\"after\":{", stdout);
		json_counts(after);
		putchar('}');
	}
	json_text("error", error);
	printf(",\"sound\":%s,\"unlocked\":%s}", sound ? "true" : "false",
	       j->check.open.unlocked ? "true" : "false");
}

static void text_end(const struct job *j, const char *path, const struct img_check_result *r,
		     const struct img_check_result *after, bool sound)
{
	const struct img_check_result *now = j->repair && !j->check.dry_run ? after : r;

	if (j->common.quiet)
		return;
	cli_print_text(stdout, path, "");
	printf(": %s", r->repaired ? "repaired, " : "");
	printf("%s", sound ? "sound" : "damaged");
	if (now->errors || now->warnings || now->notes)
		printf(": %" PRIu64 " errors, %" PRIu64 " warnings, %" PRIu64 " notes", now->errors,
		       now->warnings, now->notes);
	if (!j->repair && r->mendable)
		printf("; --repair mends %" PRIu64 " of them", r->mendable);
	if (*r->undo) {
		fputs("; the old bytes are in ", stdout);
		cli_print_text(stdout, r->undo, "");
	}
	fputs(j->check.open.unlocked ? "; unlocked, so it may have been changing\n" : "\n", stdout);
}

/* The status of one file. */
static int check(struct job *j, const char *path)
{
	struct img_check_result r = {0}, after = {0};
	struct img_err err = {0};
	bool sound;
	int rc;

	j->path = path;
	j->faults = 0;
	j->looked_at = 0;
	if (j->json) {
		printf("%s{\"file\":", j->files++ ? "," : "");
		cli_json_string(stdout, path);
		fputs(",\"faults\":[", stdout);
	}
	cli_progress_start(&j->progress, &j->common, "check");
	rc = j->repair ? img_repair(path, &j->check, &r, &after, &err)
		       : img_check(path, &j->check, &r, &err);
	cli_progress_end(&j->progress, j->looked_at);
	sound = rc == 0 && is_sound(j, &r, &after);
	if (j->json)
		json_end(j, &r, &after, sound, err.msg);
	if (rc < 0) {
		if (err.code == IMG_AGAIN && strstr(err.msg, ": locked: ") && !j->repair)
			cli_warn("--unlocked looks at a disk that is in use");
		return cli_fail(&err);
	}
	if (!j->json)
		text_end(j, path, &r, &after, sound);
	return sound ? 0 : IMG_DATA;
}

static int undo(struct job *j, const char *path)
{
	struct img_err err = {0};

	if (img_undo(path, j->force, &err) < 0)
		return cli_fail(&err);
	if (j->json) {
		printf("%s{\"file\":", j->files++ ? "," : "");
		cli_json_string(stdout, path);
		fputs(",\"undone\":true}", stdout);
	} else if (!j->common.quiet) {
		cli_print_text(stdout, path, "");
		puts(": as it was before the repair");
	}
	return 0;
}

static void parse(int argc, char **argv, struct job *j)
{
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "nf", options, NULL)) != -1) {
		if (cli_common(&j->common, opt, optarg))
			continue;
		j->check.chain |= opt == OPT_CHAIN;
		j->repair |= opt == OPT_REPAIR;
		j->undo |= opt == OPT_UNDO;
		j->check.dry_run |= opt == 'n';
		j->force |= opt == 'f';
		j->check.no_bitmaps |= opt == OPT_NO_BITMAPS;
		j->json |= opt == CLI_JSON;
		j->common.open.unlocked |= opt == OPT_UNLOCKED;
	}
	if (optind == argc)
		cli_usage("FILE is missing");
	if (j->repair && j->undo)
		cli_usage("either --repair or --undo");
	if (j->check.dry_run && !j->repair)
		cli_usage("--dry-run: only with --repair");
	if (j->force && !j->undo)
		cli_usage("--force: only with --undo");
	if (j->repair && j->check.no_bitmaps)
		cli_usage("--repair needs the bitmaps");
	if ((j->repair || j->undo) && j->common.open.unlocked)
		cli_usage("a disk in use is not written to: --unlocked is only for looking");
}

int main(int argc, char **argv)
{
	struct job j = {0};
	int status = 0;

	cli_init(argv, "vhd-check", help);
	cli_common_init(&j.common);
	parse(argc, argv, &j);
	cli_catch_signals();
	j.check.open = j.common.open;
	j.check.fault = on_fault;
	j.check.progress = on_progress;
	j.check.ctx = &j;
	if (j.json)
		fputs("{\"version\":1,\"files\":[", stdout);
	for (; optind < argc; optind++) {
		int rc = j.undo ? undo(&j, argv[optind]) : check(&j, argv[optind]);

		status = status ? status : rc;
	}
	if (j.json)
		fputs("]}\n", stdout);
	return cli_exit(status);
}
