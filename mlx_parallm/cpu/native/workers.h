/* Threads that share the chunks of one job. */
#ifndef MLX_PARALLM_WORKERS_H
#define MLX_PARALLM_WORKERS_H

typedef void (*chunk_function)(const void *job, int chunk);

/* From now on n threads work on a job, the caller among them; 1 at first. */
void workers_set(int n);
int workers_count(void);

/* Call run(job, chunk) once for each chunk in [0, chunks), and return when all have ended.
   Chunks must not depend on each other. Any thread may call this; one job at a time is shared,
   and whoever comes meanwhile computes alone. */
void workers_run(chunk_function run, const void *job, int chunks);

#endif
