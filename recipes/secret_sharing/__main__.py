from recipes.secret_sharing import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.secret_sharing"):
    main()
