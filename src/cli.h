/* SPDX-License-Identifier: BSD-2-Clause */
/* What every tool shares: usage, sizes, progress, exit codes, signals. */
#ifndef CLI_H
#define CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "img.h"

/* Long options without a short form start here. */
enum {
	CLI_LONG = 256,
	CLI_PARENT_DIR,
	CLI_PARENT_ANYWHERE,
	CLI_JSON,
	CLI_PROGRESS,
	CLI_TOOL = 300
};

/*
 * The name, for messages (getopt's too) and --version, and the text of --help. Call first in
 * main.
 */
void cli_init(char **argv, const char *tool, const char *help);
/* Whether standard input can be read, standard output written. */
bool cli_usable(int fd);
_Noreturn void cli_help(void);	  /* to stdout, 0 */
_Noreturn void cli_version(void); /* to stdout, 0 */
/* "TOOL: message" and a hint at --help on stderr, 64. */
_Noreturn void cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void cli_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints the message, if there is one; returns the exit status. */
int cli_fail(const struct img_err *err);
/* The end of every main: a stdout that could not be written turns STATUS 0 into 74. */
int cli_exit(int status);

/* 512M, 10G, 2T (powers of 1024) or bytes. False: not a size. */
bool cli_size(const char *s, uint64_t *out);
/* The same, and 100mbit (bits a second, powers of 1000). Bytes a second. */
bool cli_rate(const char *s, uint64_t *out);
/* "1.5 GiB" into buf (at least 32 bytes); returns buf. */
const char *cli_human(uint64_t bytes, char *buf);

/*
 * The options that every tool with a chain has. cli_common() takes those that getopt_long
 * returned and it knows (h, V, q, parent dirs …); false: the tool's own.
 */
#define CLI_COMMON_SHORT "hqV"
#define CLI_COMMON_LONG                                                                            \
	{"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'},                     \
		{"quiet", no_argument, NULL, 'q'},                                                 \
	{                                                                                          \
		"progress", required_argument, NULL, CLI_PROGRESS                                  \
	}
#define CLI_CHAIN_LONG                                                                             \
	{"parent-dir", required_argument, NULL, CLI_PARENT_DIR},                                   \
	{                                                                                          \
		"parent-anywhere", no_argument, NULL, CLI_PARENT_ANYWHERE                          \
	}

/* The same options in --help; common ones come last. */
#define CLI_HELP_CHAIN                                                                             \
	"      --parent-dir=DIR parents may lie below DIR (repeatable; QSM_PARENT_PATH)\n"         \
	"      --parent-anywhere  parents may lie anywhere\n"
#define CLI_HELP_COMMON                                                                            \
	"      --progress=json  progress as JSON lines on stderr\n"                                \
	"  -q, --quiet          no messages but errors\n"                                          \
	"  -h, --help           show this and exit\n"                                              \
	"  -V, --version        show the version and exit\n"

struct cli_common {
	bool quiet;
	bool progress_json;
	struct img_open open; /* parent_dirs from --parent-dir and QSM_PARENT_PATH */
	const char *dirs[64];
};
void cli_common_init(struct cli_common *c);
bool cli_common(struct cli_common *c, int opt, const char *optarg_);

/*
 * What may be read of a base to know its content sum, although nobody asked for it and a guest may
 * be waiting: an eighth of what the increment has, or 16 MiB.
 */
static inline uint64_t cli_cheap_sum(uint64_t planned)
{
	return planned / 8 > 16u << 20 ? planned / 8 : 16u << 20;
}

/* What was tolerated in each layer, on stderr, unless quiet. */
void cli_warn_chain(const struct cli_common *c, const struct img_chain *chain);

/*
 * Progress: a bar on stderr when that is a terminal, JSON lines with --progress=json, nothing
 * with --quiet. cli_progress is an img_merge/img_sum callback (ctx: struct cli_progress) and
 * returns non-zero after SIGINT or SIGTERM.
 */
struct cli_progress {
	const struct cli_common *common;
	const char *what;
	struct timespec start, last;
	bool bar, shown;
};
void cli_progress_start(struct cli_progress *p, const struct cli_common *c, const char *what);
int cli_progress(void *ctx, uint64_t done, uint64_t planned);
void cli_progress_end(struct cli_progress *p, uint64_t done);

/*
 * SIGINT and SIGTERM set a flag that cli_interrupted() shows; SIGPIPE is ignored (EPIPE
 * instead).
 */
void cli_catch_signals(void);
bool cli_interrupted(void);

/* Text from an untrusted file: control characters, except those in ALLOW, as \x1b. */
void cli_print_text(FILE *f, const char *s, const char *allow);

/* A JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void cli_json_string(FILE *f, const char *s);

#endif
