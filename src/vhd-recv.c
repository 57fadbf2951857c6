/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line of the receiver; recv.h does the work. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "recv.h"

static const char help[] =
	"Usage: vhd-recv [OPTION]... FILE < STREAM\n"
	"       vhd-recv --status [--json] FILE | --token FILE | --abort FILE\n"
	"Makes FILE out of a stream of vhd-send: a whole disk, or with --parent the AVHD that an\n"
	"increment is. FILE appears only when everything arrived and is durable. The receipt, one\n"
	"line of JSON, goes to stdout. Of a long stream that is cut, what came is kept beside FILE:\n"
	"  vhd-send --resume=\"$(vhd-recv --token FILE)\" DISK | vhd-recv FILE\n"
	"begins, or goes on.\n"
	"\n"
	"      --token             print the token that says where to go on; nothing: from the start\n"
	"      --status            what is there of FILE so far\n"
	"      --abort             remove what is there of FILE so far\n"
	"      --parent=FILE       the base of an increment; FILE becomes its child\n"
	"      --onto              FILE is there; what the stream says is changed in it, or nothing is\n"
	"      --verify-base       compare its content sum with the stream's first\n"
	"      --base-changed      do not compare it at all: it holds an earlier increment already\n"
	"      --type=TYPE         keep (the default), dynamic, fixed or raw\n"
	"      --new-uuid          a copy with an identity of its own; by default the disk keeps its\n"
	"                          UUID\n"
	"      --verify            read back what was written and compare\n"
	"      --receipt=FILE      the receipt to FILE as well\n"
	"  -f, --force             replace existing files\n"
	"      --parent-dir=DIR    parents of the parent may lie below DIR too (repeatable)\n"
	"      --parent-anywhere   they may lie anywhere\n"
	"      --json              the status in JSON\n"
	"      --progress=json     progress as JSON lines on stderr\n"
	"  -q, --quiet             no progress\n"
	"  -h, --help\n"
	"  -V, --version\n";

enum {
	OPT_PARENT = CLI_TOOL,
	OPT_VERIFY_BASE,
	OPT_BASE_CHANGED,
	OPT_TYPE,
	OPT_NEW_UUID,
	OPT_VERIFY,
	OPT_RECEIPT,
	OPT_TOKEN,
	OPT_ONTO,
	OPT_STATUS,
	OPT_ABORT,
};

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"parent", required_argument, NULL, OPT_PARENT},
	{"verify-base", no_argument, NULL, OPT_VERIFY_BASE},
	{"base-changed", no_argument, NULL, OPT_BASE_CHANGED},
	{"type", required_argument, NULL, OPT_TYPE},
	{"new-uuid", no_argument, NULL, OPT_NEW_UUID},
	{"verify", no_argument, NULL, OPT_VERIFY},
	{"receipt", required_argument, NULL, OPT_RECEIPT},
	{"onto", no_argument, NULL, OPT_ONTO},
	{"token", no_argument, NULL, OPT_TOKEN},
	{"status", no_argument, NULL, OPT_STATUS},
	{"abort", no_argument, NULL, OPT_ABORT},
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

static int parse_type(const char *s)
{
	if (!strcmp(s, "keep"))
		return TYPE_KEEP;
	for (int t = IMG_RAW; t <= IMG_DYNAMIC; t++)
		if (!strcmp(s, img_type_name((enum img_type)t)))
			return t;
	cli_usage("--type=%s: keep, dynamic, fixed or raw", s);
}

static void set_verb(struct recv *r, enum verb verb)
{
	if (r->verb && r->verb != verb)
		cli_usage("only one of --token, --status and --abort");
	r->verb = verb;
}

static void set_option(struct recv *r, int opt)
{
	switch (opt) {
	case OPT_ONTO:
		r->onto = true;
		break;
	case OPT_TOKEN:
		set_verb(r, TOKEN);
		break;
	case OPT_STATUS:
		set_verb(r, STATUS);
		break;
	case OPT_ABORT:
		set_verb(r, ABORT);
		break;
	case CLI_JSON:
		r->json = true;
		break;
	case OPT_PARENT:
		r->parent = optarg;
		break;
	case OPT_VERIFY_BASE:
		r->verify_base = true;
		break;
	case OPT_BASE_CHANGED:
		r->base_changed = true;
		break;
	case OPT_TYPE:
		r->type = parse_type(optarg);
		break;
	case OPT_NEW_UUID:
		r->new_uuid = true;
		break;
	case OPT_VERIFY:
		r->verify = true;
		break;
	case OPT_RECEIPT:
		r->receipt = optarg;
		break;
	case 'f':
		r->force = true;
		break;
	default:
		cli_usage("option %d is not handled", opt);
	}
}

/* Whether it is there already or not. */
static bool same_name(const char *a, const char *b)
{
	char *da = io_dirname(a), *db = io_dirname(b);
	bool same = io_same_file(a, b) ||
		    (da && db && !strcmp(io_basename(a), io_basename(b)) && io_same_file(da, db));

	free(da);
	free(db);
	return same;
}

static void parse(struct recv *r, int argc, char **argv)
{
	struct stat st;
	int opt;

	r->type = TYPE_KEEP;
	cli_common_init(&r->common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "f", options, NULL)) != -1)
		if (!cli_common(&r->common, opt, optarg))
			set_option(r, opt);
	if (argc - optind != 1)
		cli_usage(argc == optind ? "which file?" : "one file a stream");
	r->file = argv[optind];
	if (!*r->file)
		cli_usage("the file has no name");
	if (!strcmp(r->file, "-"))
		cli_usage("a disk cannot be written to stdout; name a file (./- is one)");
	r->path = r->file;
	if (r->onto && (r->parent || r->new_uuid))
		cli_usage("--onto goes without --parent and --new-uuid");
	if (r->onto)
		r->parent = r->file;
	if (r->verify_base && !r->parent)
		cli_usage("--verify-base goes with --parent or --onto");
	if (r->base_changed && (r->verify_base || !r->parent))
		cli_usage(
			"--base-changed goes with --parent or --onto, and not with --verify-base");
	if (r->parent && r->type != TYPE_KEEP)
		cli_usage("--type is for whole disks; an increment becomes a differencing disk");
	if (r->json && r->verb != STATUS)
		cli_usage("--json goes with --status");
	if (r->receipt && same_name(r->receipt, r->file))
		cli_usage("the receipt cannot be the disk");
	if (r->verb)
		return;
	if (isatty(STDIN_FILENO))
		cli_usage("stdin is a terminal; it takes a stream of vhd-send");
	/* At the end of a pipe the sender's bar is enough. */
	r->show = r->common.progress_json || (fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode));
}

static void tell_kept(const struct recv *r)
{
	enum img_receiving state;
	struct img_err ignored = {0};
	char at[32], size[32];

	/* Once it is there is no way back. */
	if (img_receive_state(r->file, &state, &ignored) == 0 && state == IMG_RECEIVING_MERGE)
		cli_warn("%s: half merged, and no tool opens it; the same command, or "
			 "vhd-send --resume=\"$(vhd-recv --token FILE)\", goes on",
			 r->file);
	else
		cli_warn("%s: %s of %s are kept; vhd-send --resume=\"$(vhd-recv --token FILE)\" "
			 "goes on, vhd-recv --abort FILE drops it",
			 r->file, cli_human(partial_mark(r->partial)->off, at),
			 cli_human(partial_get(r->partial)->what.size, size));
}

int main(int argc, char **argv)
{
	struct recv r = {.in = STDIN_FILENO, .out = stdout};
	struct img_err err = {0};
	int rc;

	cli_init(argv, "vhd-recv", help);
	parse(&r, argc, argv);
	cli_catch_signals();
	rc = r.verb ? recv_manage(&r, &err) : recv_stream(&r, &err);
	if (rc)
		rc = cli_fail(&err);
	if (r.kept)
		tell_kept(&r);
	recv_end(&r);
	return cli_exit(rc);
}
