from recipes.membership_inference import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.membership_inference"):
    main()
